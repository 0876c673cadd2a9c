//! Creates each template only once: the first command that needs it holds a lock, and the others wait for its result.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Template, can_have, find, find_snapshot, key, relative_image};
use crate::error::CloudError;
use machine::config::CpuConfig;
use machine::fs::remove_if_exists;
use node::home::{Home, lock_file, try_lock_file, write_private};
use node::image::Image;

/// The start of a guest of an image and a size.
#[derive(Debug)]
pub enum Start {
    /// From a template, or from the image's memory.
    Template(Template),
    /// By the boot that makes the template.
    First(Task),
    /// By a boot of its own, because there cannot be a template.
    Boot,
}

/// The exclusive right to make a template.
#[derive(Debug)]
pub struct Task {
    pub(super) home: Home,
    pub(super) key: String,
    pub(super) image: PathBuf,
    pub(super) cpus: CpuConfig,
    pub(super) memory_mib: u64,
    path: PathBuf,
    lock: File,
}

/// The result of a task without a template, for the commands that waited for it.
#[derive(Debug, Serialize, Deserialize)]
enum Failure {
    /// The first guest did not become ready.
    Boot(String),
    /// The first guest is ready, but could not be saved.
    Save,
}

impl Start {
    /// Finds the template of an image and a size, or takes the task of making it. If another command has the task, calls
    /// `waiting` and waits. Fails if the guest of that command failed to boot.
    pub fn of(
        home: &Home,
        image: &Image,
        cpus: CpuConfig,
        memory_mib: u64,
        waiting: &dyn Fn(),
    ) -> Result<Start, CloudError> {
        if let Some(template) = find(home, image, cpus, memory_mib) {
            return Ok(Start::Template(template));
        }
        if !can_have(image) {
            return Ok(Start::Boot);
        }
        let mut waited = false;
        let task = Task::take(home, image, cpus, memory_mib, &mut || {
            waited = true;
            waiting();
        })?;
        if let Some(template) = find_snapshot(home, image, cpus, memory_mib) {
            return Ok(Start::Template(template));
        }
        match task.failure().filter(|_| waited) {
            Some(Failure::Boot(why)) => return Err(CloudError::FirstBoot(why)),
            Some(Failure::Save) => return Ok(Start::Boot),
            None => {}
        }
        task.forget_failure()?;
        Ok(Start::First(task))
    }

    pub fn template(&self) -> Option<&Template> {
        if let Start::Template(template) = self { Some(template) } else { None }
    }
}

impl Task {
    /// Takes the task. If another command has it, calls `waiting` and waits.
    pub fn take(
        home: &Home,
        image: &Image,
        cpus: CpuConfig,
        memory_mib: u64,
        waiting: &mut dyn FnMut(),
    ) -> Result<Task, CloudError> {
        let key = key(home, image, cpus, memory_mib);
        let path = home.warm().join(format!("{key}.making"));
        let lock = match try_lock_file(&path).map_err(CloudError::file(&path, "lock"))? {
            Some(lock) => lock,
            None => {
                waiting();
                lock_file(&path).map_err(CloudError::file(&path, "lock"))?
            }
        };
        let image = relative_image(home, &image.dir);
        Ok(Task { home: home.clone(), key, image, cpus, memory_mib, path, lock })
    }

    pub(crate) fn cpus(&self) -> CpuConfig {
        self.cpus
    }

    pub(crate) fn memory_mib(&self) -> u64 {
        self.memory_mib
    }

    /// Tells the commands that wait for this task that the first guest failed to boot.
    pub(crate) fn boot_failed(&self, error: &CloudError) {
        self.record_failure(&Failure::Boot(error.to_string()));
    }

    /// Tells the commands that wait for this task to boot their own guests.
    pub(crate) fn save_failed(&self) {
        self.record_failure(&Failure::Save);
    }

    fn record_failure(&self, failure: &Failure) {
        let text = serde_json::to_vec(failure).expect("a failure is plain data");
        // Without the file, the next command that waits makes the template itself.
        if let Err(error) = write_private(&failure_path(&self.home, &self.key), &text) {
            log::warn!("cannot record why there is no template: {error}");
        }
    }

    fn failure(&self) -> Option<Failure> {
        serde_json::from_slice(&fs::read(failure_path(&self.home, &self.key)).ok()?).ok()
    }

    fn forget_failure(&self) -> Result<(), CloudError> {
        let path = failure_path(&self.home, &self.key);
        remove_if_exists(&path).map_err(CloudError::file(&path, "remove"))
    }
}

/// Returns the path of the file with the [`Failure`] of the last task, if it failed.
pub(super) fn failure_path(home: &Home, key: &str) -> PathBuf {
    home.warm().join(format!("{key}{FAILED}"))
}

/// Name suffix of the files with failures.
pub(super) const FAILED: &str = ".failed";

impl Drop for Task {
    fn drop(&mut self) {
        // Another task may have replaced the file: a command that waited earlier can hold the lock of a removed file.
        // Then two commands can create the template at once, and the later one replaces it.
        let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
        let own = self.lock.metadata().map(inode);
        if let (Ok(own), Ok(at_path)) = (own, self.path.metadata().map(inode))
            && own == at_path
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use node::image::Manifest;
    use std::sync::mpsc::channel;
    use std::thread;

    const CPUS: CpuConfig = CpuConfig { count: 1, threads_per_core: 1 };
    const MANIFEST: &str = r#"
        name = "test"
        architecture = "x86_64"
        default_user = "root"
        [kernel]
        file = "vmlinux"
        sha256 = "00"
        [root]
        file = "root.ext4"
        sha256 = "11"
        format = "raw"
        file_system = "ext4"
    "#;

    fn image() -> Image {
        Image { dir: "/images/test".into(), manifest: Manifest::parse(MANIFEST).unwrap() }
    }

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path()).unwrap();
        (dir, home)
    }

    fn first(home: &Home) -> Task {
        let unexpected = || panic!("no other command has the task");
        match Start::of(home, &image(), CPUS, 256, &unexpected).unwrap() {
            Start::First(task) => task,
            other => panic!("unexpected start: {other:?}"),
        }
    }

    /// Returns the start of a command that waits for `task` until `end` ends it.
    fn start_after(home: &Home, task: Task, end: impl FnOnce(Task)) -> Result<Start, CloudError> {
        let (sender, waits) = channel();
        thread::scope(|scope| {
            let waiting = scope.spawn(move || Start::of(home, &image(), CPUS, 256, &|| sender.send(()).unwrap()));
            waits.recv().unwrap();
            end(task);
            waiting.join().unwrap()
        })
    }

    #[test]
    fn waiting_command_fails_with_boot_error_and_later_one_tries_again() {
        let (_dir, home) = home();
        let failed = start_after(&home, first(&home), |task| {
            task.boot_failed(&CloudError::NotWarm("the guest panicked".into()));
        });
        let why = failed.unwrap_err().to_string();
        assert!(why.starts_with("another launch") && why.contains("the guest panicked"), "{why}");
        drop(first(&home));
    }

    #[test]
    fn waiting_command_boots_if_first_guest_could_not_be_saved() {
        let (_dir, home) = home();
        let start = start_after(&home, first(&home), |task| task.save_failed());
        assert!(matches!(start, Ok(Start::Boot)), "{start:?}");
    }

    #[test]
    fn waiting_command_takes_over_task_of_killed_command() {
        let (_dir, home) = home();
        let start = start_after(&home, first(&home), drop);
        assert!(matches!(start, Ok(Start::First(_))), "{start:?}");
    }

    #[test]
    fn end_of_task_removes_its_own_lock_only() {
        let (_dir, home) = home();
        let old = first(&home);
        fs::remove_file(&old.path).unwrap();
        let new = first(&home);
        drop(old);
        assert!(new.path.exists());
        let path = new.path.clone();
        drop(new);
        assert!(!path.exists());
    }

    #[test]
    fn image_with_cloud_init_has_no_template() {
        let (_dir, home) = home();
        let mut image = image();
        image.manifest.cloud_init = true;
        assert!(matches!(Start::of(&home, &image, CPUS, 256, &|| {}), Ok(Start::Boot)));
    }
}
