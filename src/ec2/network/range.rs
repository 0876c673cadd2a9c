//! Address ranges: their syntax, and the valid ranges of VPCs and subnets (Amazon VPC User Guide, "VPC CIDR blocks" and
//! "Subnet CIDR blocks").

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use ipnet::Ipv4Net;

use super::Zone;
use crate::{Ec2Error, ErrorCode};

const PREFIX_LENGTHS: RangeInclusive<u8> = 16..=28;
/// The offset of the first address that an instance can have.
const FIRST: u32 = 4;
/// Ranges that a VPC must not overlap, because hosts use them for special purposes.
const RESERVED: [Ipv4Net; 4] = [
    Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 8),
    Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
    Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// All addresses.
pub const ANYWHERE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0);
pub const DEFAULT_VPC: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 31, 0, 0), 16);

/// Parses a range. Clears bits after the prefix, as EC2 does. An address without a prefix length is a range of one
/// address.
pub fn parse_range(text: &str) -> Result<Ipv4Net, Ec2Error> {
    let address = || text.parse::<Ipv4Addr>().map(Ipv4Net::from);
    let range = text.parse::<Ipv4Net>().or_else(|_| address());
    range.map(|range| range.trunc()).map_err(|_| {
        Ec2Error::invalid_parameter("CidrIp", text, "it must be an IPv4 address range, such as 10.0.0.0/8.")
    })
}

fn overlap(one: Ipv4Net, other: Ipv4Net) -> bool {
    one.contains(&other) || other.contains(&one)
}

/// A subnet's range. EC2 reserves its first four addresses and the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetRange {
    pub own: Ipv4Net,
    pub vpc: Ipv4Net,
}

impl SubnetRange {
    pub const fn default_in(zone: Zone) -> SubnetRange {
        let base = Ipv4Addr::new(172, 31, 16 * zone as u8, 0);
        SubnetRange { own: Ipv4Net::new_assert(base, 20), vpc: DEFAULT_VPC }
    }

    /// Returns the router's address: the subnet's base plus one.
    pub fn router(self) -> Ipv4Addr {
        at(self.own, 1)
    }

    /// Returns the name server's address: the VPC's base plus two.
    pub fn name_server(self) -> Ipv4Addr {
        at(self.vpc, 2)
    }

    /// Returns the addresses available to instances, in ascending order.
    pub fn addresses(self) -> impl Iterator<Item = Ipv4Addr> {
        (FIRST..last(self.own)).map(move |number| at(self.own, number))
    }

    pub fn check(self, address: Ipv4Addr) -> Result<(), Ec2Error> {
        let SubnetRange { own, .. } = self;
        let number = address.to_bits().wrapping_sub(own.network().to_bits());
        let rule = if !own.contains(&address) {
            format!("it must be in the subnet's range, {own}.")
        } else if !(FIRST..last(own)).contains(&number) {
            format!("the first four addresses and the last address of the subnet {own} are reserved.")
        } else {
            return Ok(());
        };
        Err(Ec2Error::invalid_parameter("PrivateIpAddress", address, rule))
    }
}

/// Returns the address at the offset `number` from the range's first address.
fn at(range: Ipv4Net, number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(range.network().to_bits().wrapping_add(number))
}

/// Returns the offset of the range's last address.
fn last(range: Ipv4Net) -> u32 {
    range.hostmask().to_bits()
}

pub fn check_vpc_range(range: Ipv4Net) -> Result<(), Ec2Error> {
    let refused = |why: String| Err(Ec2Error::refused(ErrorCode::InvalidVpcRange, why, None));
    if !PREFIX_LENGTHS.contains(&range.prefix_len()) {
        return refused(format!(
            "The CIDR '{range}' is invalid: the prefix length of a VPC must be between 16 and 28."
        ));
    }
    match RESERVED.iter().find(|reserved| overlap(**reserved, range)) {
        Some(reserved) => refused(format!("The CIDR '{range}' is invalid: {reserved} is reserved.")),
        None => Ok(()),
    }
}

/// Checks the range of a new subnet. `others` are the VPC's existing subnets.
pub fn check_subnet_range(
    range: Ipv4Net,
    vpc: Ipv4Net,
    others: impl IntoIterator<Item = Ipv4Net>,
) -> Result<(), Ec2Error> {
    let refused = |code, why: String| Err(Ec2Error::refused(code, why, None));
    if !PREFIX_LENGTHS.contains(&range.prefix_len()) || !vpc.contains(&range) {
        let why = format!(
            "The CIDR '{range}' is invalid: it must be within the VPC's range, {vpc}, and its prefix length must be at \
             most 28."
        );
        return refused(ErrorCode::InvalidSubnetRange, why);
    }
    match others.into_iter().find(|other| overlap(*other, range)) {
        Some(other) => {
            refused(ErrorCode::InvalidSubnetConflict, format!("The CIDR '{range}' conflicts with the subnet {other}."))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Ipv4Net {
        parse_range(text).unwrap()
    }

    #[test]
    fn range_is_parsed_and_truncated() {
        assert_eq!(range("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert!(range("0.0.0.0/0") == ANYWHERE && ANYWHERE.contains(&Ipv4Addr::BROADCAST));
        assert_eq!(range("1.2.3.4").prefix_len(), 32);
        for text in ["", "10.0.0.0/33", "10.0.0/8", "10.0.0.0/", "::/0"] {
            assert!(parse_range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn first_four_addresses_and_last_are_reserved() {
        let subnet = SubnetRange::default_in(Zone::A);
        let addresses: Vec<Ipv4Addr> = subnet.addresses().collect();
        assert_eq!(addresses.len(), 4096 - 5);
        assert_eq!(addresses[0], Ipv4Addr::new(172, 31, 0, 4));
        assert_eq!(addresses.last(), Some(&Ipv4Addr::new(172, 31, 15, 254)));
        assert!(addresses.iter().all(|address| subnet.check(*address).is_ok()));
        for address in [[172, 31, 0, 0], [172, 31, 0, 3], [172, 31, 15, 255], [172, 31, 16, 4]] {
            assert!(subnet.check(address.into()).is_err(), "{address:?}");
        }
    }

    /// A universe of 32 addresses that contains the ranges of the checks.
    const UNIVERSE: std::ops::Range<u32> = 0x0a00_0020..0x0a00_0040;

    fn members(range: Ipv4Net) -> Vec<u32> {
        UNIVERSE.filter(|address| range.contains(&Ipv4Addr::from_bits(*address))).collect()
    }

    fn range_of(base: u32, prefix_length: u8) -> Ipv4Net {
        range(&format!("{}/{prefix_length}", Ipv4Addr::from_bits(base)))
    }

    /// Checks that a range has the aligned block of addresses around `base`.
    fn check_range(base: u32, prefix_length: u8) {
        let size = 1 << (32 - prefix_length);
        let first = base / size * size;
        assert_eq!(members(range_of(base, prefix_length)), (first..first + size).collect::<Vec<_>>());
    }

    /// Checks that a subnet gives out its addresses except the first four and the last.
    fn check_subnet(own: Ipv4Net) {
        let subnet = SubnetRange { own, vpc: own };
        let all = members(own);
        let expected: Vec<Ipv4Addr> = all[4..all.len() - 1].iter().map(|bits| Ipv4Addr::from_bits(*bits)).collect();
        assert_eq!(subnet.addresses().collect::<Vec<_>>(), expected, "{own}");
        for address in (UNIVERSE.start - 8..UNIVERSE.end + 8).chain([0, u32::MAX]).map(Ipv4Addr::from_bits) {
            assert_eq!(subnet.check(address).is_ok(), expected.contains(&address), "{address} in {own}");
        }
    }

    #[test]
    fn every_small_range_matches_model() {
        for base in UNIVERSE {
            (27..=32).for_each(|prefix_length| check_range(base, prefix_length));
        }
    }

    #[test]
    fn every_small_subnet_matches_model() {
        for base in UNIVERSE.step_by(16) {
            check_subnet(range_of(base, 27));
            check_subnet(range_of(base, 28));
        }
    }

    #[test]
    fn subnet_has_own_router_and_name_server_of_vpc() {
        let subnet = SubnetRange::default_in(Zone::F);
        assert_eq!(subnet.own, range("172.31.80.0/20"));
        assert_eq!(subnet.router(), Ipv4Addr::new(172, 31, 80, 1));
        assert_eq!(subnet.name_server(), Ipv4Addr::new(172, 31, 0, 2));
    }

    #[test]
    fn vpc_range_outside_ec2_limits_is_refused() {
        for text in ["10.0.0.0/16", "192.168.7.0/28", "100.64.0.0/16", "172.31.0.0/16"] {
            assert_eq!(check_vpc_range(range(text)), Ok(()), "{text}");
        }
        for text in ["10.0.0.0/8", "10.0.0.0/29", "127.18.0.0/16", "169.254.0.0/16", "0.0.0.0/16", "240.0.0.0/16"] {
            assert_eq!(check_vpc_range(range(text)).unwrap_err().code(), ErrorCode::InvalidVpcRange, "{text}");
        }
    }

    #[test]
    fn subnet_outside_vpc_or_with_overlap_is_refused() {
        let (vpc, other) = (range("10.0.0.0/16"), range("10.0.1.0/24"));
        assert_eq!(check_subnet_range(range("10.0.2.0/24"), vpc, [other]), Ok(()));
        assert_eq!(check_subnet_range(vpc, vpc, []), Ok(()));
        for (text, code) in [
            ("10.1.0.0/24", ErrorCode::InvalidSubnetRange),
            ("10.0.0.0/15", ErrorCode::InvalidSubnetRange),
            ("10.0.2.0/29", ErrorCode::InvalidSubnetRange),
            ("10.0.0.0/20", ErrorCode::InvalidSubnetConflict),
            ("10.0.1.128/25", ErrorCode::InvalidSubnetConflict),
        ] {
            assert_eq!(check_subnet_range(range(text), vpc, [other]).unwrap_err().code(), code, "{text}");
        }
    }
}
