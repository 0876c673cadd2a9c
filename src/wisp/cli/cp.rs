//! `wisp cp`: copies files between the host and a guest.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;

use super::open_cloud;
use super::output;
use super::wait::{self, AGENT_TIMEOUT};

/// Copy files and directories to or from an instance.
///
/// Files are copied through the guest's agent, without a network or a key. If DST is an existing directory, the copy is
/// created inside it, named after the last component of SRC. If SRC has no last component, as in `web:/` or
/// `web:/srv/.`, DST must not exist. Sparse files stay sparse. Symbolic links inside SRC are copied as links.
/// Later copies refuse paths on this host that lead through a link copied from an instance. Devices, pipes and sockets
/// are neither copied nor written to.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp cp notes.txt web:/root/        copy a file to the instance
  wisp cp web:/var/log ./logs         copy a directory from the instance
  wisp cp web:/srv/. ./new            copy the contents of /srv to a new directory")]
pub struct Args {
    /// Source: a path on this host, or INSTANCE:PATH.
    #[arg(value_name = "SRC")]
    source: String,

    /// Destination: a path on this host, or INSTANCE:PATH.
    #[arg(value_name = "DST")]
    destination: String,
}

/// Splits `INSTANCE:PATH`. Returns `None` for a path on this host, for example if a slash precedes the first colon.
fn in_guest(text: &str) -> Option<(&str, &str)> {
    text.split_once(':').filter(|(instance, _)| !instance.is_empty() && !instance.contains('/'))
}

pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let cloud = open_cloud()?;
    let spinner = wait::spinner("Copying");
    let mut copied = 0;
    let mut progress = |bytes: u64| {
        copied += bytes;
        spinner.set_message(format!("Copying: {}", output::bytes(copied)));
    };
    let summary = match (in_guest(&args.source), in_guest(&args.destination)) {
        (None, Some((instance, path))) => {
            let (record, agent) = cloud.instances().agent(instance, AGENT_TIMEOUT)?;
            let holes = agent.ping(AGENT_TIMEOUT)?.holes();
            let agent = cloud.dir(record.meta.id).agent(AGENT_TIMEOUT)?;
            agent.copy_to_guest(Path::new(&args.source), OsStr::new(path), holes, &mut progress)?
        }
        (Some((instance, path)), None) => {
            let (record, agent) = cloud.instances().agent(instance, AGENT_TIMEOUT)?;
            let holes = agent.ping(AGENT_TIMEOUT)?.holes();
            let agent = cloud.dir(record.meta.id).agent(AGENT_TIMEOUT)?;
            agent.copy_from_guest(OsStr::new(path), Path::new(&args.destination), holes, &mut progress)?
        }
        (None, None) => bail!("neither path is in an instance: write one of them as INSTANCE:PATH"),
        (Some(_), Some(_)) => bail!("both paths are in instances: copy to this host first, then to the other instance"),
    };
    spinner.finish_and_clear();
    log::info!("{summary:?}");
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_colon_after_a_slash_is_part_of_a_path() {
        assert_eq!(in_guest("web:/etc"), Some(("web", "/etc")));
        assert_eq!(in_guest("web:"), Some(("web", "")));
        assert_eq!(in_guest("./a:b"), None);
        assert_eq!(in_guest(":b"), None);
        assert_eq!(in_guest("plain"), None);
    }
}
