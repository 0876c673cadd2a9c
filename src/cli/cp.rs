//! `wisp cp`: copies between the host and a guest.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::bail;

use super::open_cloud;
use super::output;
use super::wait::{self, AGENT_TIMEOUT};

/// Copy files and directories to or from an instance.
///
/// The copy needs no network and no key. If DST is an existing directory, the copy is created inside it, under the
/// last component of SRC. A SRC without one, such as `web:/` or `web:/srv/.`, needs a DST that does not exist. Holes
/// of sparse files stay holes. Symbolic links inside SRC are copied as links. Links copied from an instance are never
/// followed later, neither in SRC nor in DST. Devices, pipes and sockets are not copied and not written to.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wisp cp notes.txt web:/root/        to the instance
  wisp cp web:/var/log ./logs         from the instance, with everything in it
  wisp cp web:/srv/. ./new            the contents of /srv, as the new directory ./new")]
pub struct Args {
    /// Source: a path on this host, or INSTANCE:PATH.
    #[arg(value_name = "SRC")]
    source: String,

    /// Destination: a path on this host, or INSTANCE:PATH.
    #[arg(value_name = "DST")]
    destination: String,
}

/// Parses `INSTANCE:PATH`. A path with a slash before its colon is on this host.
fn in_guest(text: &str) -> Option<(&str, &str)> {
    text.split_once(':').filter(|(instance, _)| !instance.is_empty() && !instance.contains('/'))
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let mut cloud = open_cloud()?;
    let spinner = wait::spinner("Copying");
    let mut copied = 0;
    let mut progress = |bytes: u64| {
        copied += bytes;
        spinner.set_message(format!("Copying: {}", output::bytes(copied)));
    };
    let summary = match (in_guest(&args.source), in_guest(&args.destination)) {
        (None, Some((instance, path))) => {
            let (record, agent) = cloud.agent_of(instance, AGENT_TIMEOUT)?;
            let holes = agent.ping(AGENT_TIMEOUT)?.holes();
            let agent = cloud.dir(record.id).agent(AGENT_TIMEOUT)?;
            agent.copy_to_guest(Path::new(&args.source), OsStr::new(path), holes, &mut progress)?
        }
        (Some((instance, path)), None) => {
            let (record, agent) = cloud.agent_of(instance, AGENT_TIMEOUT)?;
            let holes = agent.ping(AGENT_TIMEOUT)?.holes();
            let agent = cloud.dir(record.id).agent(AGENT_TIMEOUT)?;
            agent.copy_from_guest(OsStr::new(path), Path::new(&args.destination), holes, &mut progress)?
        }
        (None, None) => bail!("neither path is in a guest: write one of them as INSTANCE:PATH"),
        (Some(_), Some(_)) => bail!("both paths are in guests: copy to this host first, and then to the other guest"),
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
