//! Starts the instances of a launch that makes a template: the first one boots, and the others are restored.

use std::path::Path;
use std::time::Duration;

use super::Outcome;
use super::error::CloudError;
use super::instances::Instances;
use super::launch::Prepared;
use super::template::{self, IDENTITY_TIMEOUT, Task, Template};
use ec2::state::InstanceState;
use node::host::{Machine, Source};
use node::image::Image;
use node::machine_config::disk_id;
use store::InstanceRecord;

impl Instances<'_> {
    /// Boots the first instance and makes the template, from which the others are restored. Returns when the guest of
    /// the first instance is ready and those of the others run.
    pub(super) fn start_first(
        &self,
        prepared: Vec<Prepared>,
        image: &Image,
        task: Task,
        boot_timeout: Duration,
    ) -> Result<Outcome<Vec<Box<dyn Machine>>>, CloudError> {
        let mut rest = prepared.into_iter();
        let Some(first) = rest.next() else { return Ok(Outcome::default()) };
        let size = (task.cpus(), task.memory_mib());
        let mut started = self.boot_first(first, image, task, boot_timeout)?;
        let rest: Vec<Prepared> = rest.collect();
        let warm = template::find(&self.cloud.home, image, size.0, size.1).filter(|_| !rest.is_empty());
        if let Some(layer) = warm.as_ref().and_then(Template::layer) {
            rest.iter().try_for_each(|one| self.fill_root_volume(one, layer))?;
        }
        let others = self.start_prepared(rest, image, warm.as_ref())?;
        started.value.extend(others.value);
        started.warnings.extend(others.warnings);
        Ok(started)
    }

    fn boot_first(
        &self,
        Prepared { record, lock, .. }: Prepared,
        image: &Image,
        task: Task,
        boot_timeout: Duration,
    ) -> Result<Outcome<Vec<Box<dyn Machine>>>, CloudError> {
        let volumes = self.cloud.volumes().of(&record)?;
        let start = self.plan_start(&record, lock, image, &volumes, Source::First);
        let booted = self.start_all([start]).and_then(|mut started| {
            for machine in &mut started.value {
                if !machine.wait_ready(boot_timeout)? {
                    return Err(machine.not_ready(InstanceState::Pending, boot_timeout).into());
                }
                machine.prepare_template()?;
            }
            Ok(started)
        });
        let mut started = booted.inspect_err(|error| task.boot_failed(error))?;
        if let Err(error) = self.save_first(&record, &task) {
            task.save_failed();
            started.warnings.push(format!("no template for later launches: {error}"));
        }
        // Commands that wait for the template continue from here.
        drop(task);
        for machine in &mut started.value {
            if !machine.personalize(IDENTITY_TIMEOUT)? {
                return Err(machine.not_ready(InstanceState::Pending, IDENTITY_TIMEOUT).into());
            }
        }
        Ok(started)
    }

    /// Saves the guest of an instance, which has no identity yet, as the template.
    fn save_first(&self, record: &InstanceRecord, task: &Task) -> Result<(), CloudError> {
        let frozen = self.freeze(record)?;
        let missing = || CloudError::NotWarm("the instance has no root volume".into());
        let root = frozen.volumes.first().ok_or_else(missing)?;
        let layer = self.cloud.home.volumes().join(&root.status.file);
        task.install(&frozen.saved.restore.dir, &disk_id(root.meta.id), &layer).map(drop)
    }

    /// Replaces an instance's empty root volume by a copy of the template's overlay.
    fn fill_root_volume(&self, Prepared { volumes, .. }: &Prepared, layer: &Path) -> Result<(), CloudError> {
        let Some(root) = volumes.first() else { return Ok(()) };
        template::copy_layer(layer, &self.cloud.home.volumes().join(&root.status.file)).map(drop)
    }
}
