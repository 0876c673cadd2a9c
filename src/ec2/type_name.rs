//! Parsing of instance type names: `c6i.2xlarge` is c (compute optimized), 6 (sixth generation), i (Intel) and a size.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Category {
    /// Types with a CPU baseline, and credits to exceed it.
    Burstable,
    GeneralPurpose,
    ComputeOptimized,
    MemoryOptimized,
    StorageOptimized,
    Accelerated,
}

impl Category {
    /// Returns the category of a series, the letters at the start of a type name, or none if the series is unknown.
    pub fn of_series(series: &str) -> Option<Self> {
        Some(match series {
            "t" => Category::Burstable,
            "m" => Category::GeneralPurpose,
            "c" => Category::ComputeOptimized,
            "r" | "x" | "z" | "u" => Category::MemoryOptimized,
            "d" | "h" | "i" => Category::StorageOptimized,
            "f" | "g" | "p" | "inf" | "trn" | "dl" | "vt" => Category::Accelerated,
            _ => return None,
        })
    }

    pub fn title(self) -> &'static str {
        match self {
            Category::Burstable => "burstable",
            Category::GeneralPurpose => "general purpose",
            Category::ComputeOptimized => "compute optimized",
            Category::MemoryOptimized => "memory optimized",
            Category::StorageOptimized => "storage optimized",
            Category::Accelerated => "accelerated",
        }
    }

    pub fn explanation(self) -> &'static str {
        match self {
            Category::Burstable => "earns CPU credits when idle, spends them when busy",
            Category::GeneralPurpose => "balanced CPU and memory for everyday workloads",
            Category::ComputeOptimized => "more CPU per GiB of memory: builds, batch, web",
            Category::MemoryOptimized => "more memory per vCPU: databases, caches",
            Category::StorageOptimized => "large or fast local disks: search, analytics",
            Category::Accelerated => "GPUs: machine learning, graphics, video",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TypeName<'a> {
    /// Everything before the dot, for example `x2iedn`.
    pub family: &'a str,
    /// The first letters, for example `x`.
    pub series: &'a str,
    /// The digits after the series, for example 2.
    pub generation: u32,
    /// The letters after the generation, for example `iedn`.
    pub attributes: &'a str,
    /// Everything after the dot, for example `32xlarge`.
    pub size: &'a str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamePart<'a> {
    pub text: &'a str,
    pub meaning: String,
}

impl<'a> TypeName<'a> {
    pub fn parse(name: &'a str) -> Option<Self> {
        let (family, size) = name.split_once('.')?;
        if size.is_empty() {
            return None;
        }
        let digits_start = family.find(|c: char| c.is_ascii_digit())?;
        let (series, rest) = family.split_at(digits_start);
        let digits_end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (generation, attributes) = rest.split_at(digits_end);
        let is_letters = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase());
        if series.is_empty() || !is_letters(series) || !is_letters(attributes) {
            return None;
        }
        let generation = generation.parse().ok()?;
        Some(TypeName { family, series, generation, attributes, size })
    }

    /// Explains the name from left to right, with the generation and each attribute as separate parts.
    pub fn reading(&self) -> Vec<NamePart<'a>> {
        let attributes_start = self.family.len() - self.attributes.len();
        let generation = &self.family[self.series.len()..attributes_start];
        let category = Category::of_series(self.series).map_or("other series", Category::title);

        let mut parts = vec![
            NamePart { text: self.series, meaning: category.to_owned() },
            NamePart { text: generation, meaning: format!("{} generation", ordinal(self.generation)) },
        ];
        parts.extend((0..self.attributes.len()).map(|at| {
            let text = &self.attributes[at..=at];
            NamePart { text, meaning: attribute_meaning(text).to_owned() }
        }));
        parts.push(NamePart { text: self.size, meaning: size_meaning(self.size) });
        parts
    }

    /// Explains the family's name on one line: `compute optimized, sixth generation, Intel`.
    pub fn family_reading(&self) -> String {
        let mut parts = self.reading();
        parts.pop();
        let meanings: Vec<String> = parts.into_iter().map(|part| part.meaning).collect();
        meanings.join(", ")
    }
}

fn ordinal(generation: u32) -> String {
    const WORDS: [&str; 9] = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth"];
    generation
        .checked_sub(1)
        .and_then(|index| WORDS.get(index as usize))
        .map_or_else(|| format!("{generation}th"), |word| (*word).to_owned())
}

fn attribute_meaning(letter: &str) -> &'static str {
    match letter {
        "a" => "AMD",
        "b" => "block storage",
        "d" => "local disks",
        "e" => "extra memory",
        "g" => "Graviton (Arm)",
        "i" => "Intel",
        "n" => "network",
        "z" => "high frequency",
        _ => "other attribute",
    }
}

fn size_meaning(size: &str) -> String {
    if let Some(rest) = size.strip_prefix("metal") {
        return match rest.strip_prefix('-').and_then(|size| size.strip_suffix("xl")) {
            Some(times) => format!("size: bare metal, equivalent to {times}xlarge"),
            None => "size: bare metal, without a hypervisor".to_owned(),
        };
    }
    match (size, size.strip_suffix("xlarge")) {
        ("nano", _) => "size: the smallest".to_owned(),
        ("micro", _) => "size: twice a nano".to_owned(),
        ("small", _) => "size: twice a micro".to_owned(),
        ("medium", _) => "size: twice a small".to_owned(),
        ("large", _) => "size: twice a medium".to_owned(),
        ("xlarge", _) => "size: twice a large".to_owned(),
        (_, Some(times)) => format!("size: {times} times an xlarge"),
        _ => "size".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reading(name: &str) -> Vec<(&str, String)> {
        TypeName::parse(name).expect(name).reading().into_iter().map(|part| (part.text, part.meaning)).collect()
    }

    #[test]
    fn reading_explains_name_from_left_to_right() {
        assert_eq!(
            reading("c6i.2xlarge"),
            [
                ("c", "compute optimized".to_owned()),
                ("6", "sixth generation".to_owned()),
                ("i", "Intel".to_owned()),
                ("2xlarge", "size: 2 times an xlarge".to_owned()),
            ]
        );
        let texts: Vec<&str> = reading("x2iedn.metal").iter().map(|(text, _)| *text).collect();
        assert_eq!(texts, ["x", "2", "i", "e", "d", "n", "metal"]);
    }

    #[test]
    fn family_reading_is_one_line() {
        let name = TypeName::parse("t4g.nano").expect("a name");
        assert_eq!(name.family_reading(), "burstable, fourth generation, Graviton (Arm)");
    }

    #[test]
    fn size_meaning_compares_with_other_sizes() {
        assert_eq!(size_meaning("micro"), "size: twice a nano");
        assert_eq!(size_meaning("metal"), "size: bare metal, without a hypervisor");
        assert_eq!(size_meaning("metal-24xl"), "size: bare metal, equivalent to 24xlarge");
    }

    #[test]
    fn malformed_name_is_not_parsed() {
        for text in ["", "t3", "t3.", ".large", "3.large", "t.large", "T3.large", "t3é.large"] {
            assert_eq!(TypeName::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "[a-z]{0,4}[0-9]{0,12}[a-zé]{0,4}\\.?[a-z0-9-]{0,12}") {
            if let Some(name) = TypeName::parse(&text) {
                let read: String = name.reading().iter().map(|part| part.text).collect();
                prop_assert_eq!(read, text.replacen('.', "", 1));
            }
        }
    }
}
