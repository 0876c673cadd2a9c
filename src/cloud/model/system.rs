//! Carries out commands with the services, and compares the records with the reference.

use std::panic::AssertUnwindSafe;

use proptest_state_machine::StateMachineTest;

use super::host::{FakeNode, Killed};
use super::invariants;
use super::reference::{Action, Attachment, Command, Instance, Model, Reference, Snapshot, State, Volume};
use crate::Cloud;
use crate::create_image::ImageConsistency;
use crate::error::CloudError;
use crate::fork::ForkSpec;
use crate::ids::sequence;
use crate::launch::LaunchSpec;
use crate::layers;
use crate::modify::Modification;
use crate::network::NetworkSpec;
use crate::volume::NewVolume;
use ec2::capacity::InstanceSize;
use ec2::id::AllocationId;
use ec2::state::{InstanceState, ShutdownBehavior};
use ec2::volume::{VolumeChange, VolumeOption, VolumeSize, VolumeSource, VolumeSpec};
use ec2::{ImageId, InstanceId, SnapshotId, VolumeId, catalog};
use machine::end::End;
use node::embedded;
use node::home::Home;
use node::host::StopMode;
use store::{AddressRecord, ImageRecord, InstanceRecord, SnapshotRecord, VolumeRecord};

const GIB: u64 = 1 << 30;
const TYPE: &str = "t3.micro";

/// The data directory and the host.
pub(super) struct System {
    home: Home,
    node: FakeNode,
    /// The resources as they were found after the last command.
    expected: Model,
    ids: Ids,
    images: u32,
    _dir: tempfile::TempDir,
}

/// The IDs of the resources by their position.
#[derive(Default)]
struct Ids {
    instances: Vec<InstanceId>,
    volumes: Vec<VolumeId>,
    snapshots: Vec<SnapshotId>,
    images: Vec<ImageId>,
    addresses: Vec<AllocationId>,
}

/// The end of a command.
#[derive(Debug)]
enum Outcome {
    Returned(Result<(), CloudError>),
    Killed,
}

impl StateMachineTest for System {
    type SystemUnderTest = System;
    type Reference = Reference;

    fn init_test(_: &Model) -> System {
        // A RAM disk has no slow writes.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let home = Home::at(dir.path()).expect("a data directory");
        sequence::restart();
        System {
            home,
            node: FakeNode::default(),
            expected: Model::default(),
            ids: Ids::default(),
            images: 0,
            _dir: dir,
        }
    }

    fn apply(mut system: System, _: &Model, command: Command) -> System {
        system.run(&command);
        system
    }
}

impl System {
    fn run(&mut self, Command { action, fault }: &Command) {
        let mut after = self.expected.clone();
        // After a fault, the resource that the generator meant may not exist.
        let Some(result) = after.apply(action) else { return };
        self.node.host().fault = *fault;
        let outcome = self.carry_out(action);
        let is_faulty = self.node.host().fault.take().is_none() && fault.is_some();
        // The next command reconciles.
        let cloud = self.open();
        let observed = self.observe(&cloud, after.writes);
        if is_faulty {
            self.check_faulty(action, &observed, &after, &outcome);
        } else {
            match (&outcome, result) {
                (Outcome::Returned(Ok(())), Ok(())) => {}
                (Outcome::Returned(Err(CloudError::Ec2(refusal))), Err(expected)) if refusal.code() == expected => {}
                (outcome, expected) => panic!("{action:?}: {outcome:?} instead of {expected:?}"),
            }
            assert_eq!(observed, after, "{action:?}");
        }
        invariants::check(&cloud, &self.node.host());
        self.expected = observed;
    }

    fn open(&self) -> Cloud {
        let cloud = Cloud::with_node(self.home.clone(), Box::new(self.node.clone())).expect("the store can be opened");
        // The reference knows no warnings: it compares the records.
        let _warnings = cloud.instances().reconcile();
        cloud
    }

    fn carry_out(&mut self, action: &Action) -> Outcome {
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let cloud = self.open();
            self.execute(&cloud, action)
        }));
        match result {
            Ok(result) => Outcome::Returned(result),
            Err(panic) if panic.is::<Killed>() => Outcome::Killed,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn execute(&mut self, cloud: &Cloud, action: &Action) -> Result<(), CloudError> {
        let instances = cloud.instances();
        let id = |instance: usize| self.ids.instances[instance];
        match *action {
            Action::Launch { count, image, extra, ends_at_power_off, can_hibernate } => {
                let image = image.map(|image| self.ids.images[image].to_string());
                let behavior = if ends_at_power_off { ShutdownBehavior::Terminate } else { ShutdownBehavior::Stop };
                instances.launch(&launch_spec(count, image, extra, behavior, can_hibernate), &|_| {}).map(drop)
            }
            Action::Start(instance) => instances.start(id(instance), false, false).map(drop),
            Action::Stop { instance, hibernate } => {
                if hibernate {
                    instances.check_hibernation(&[id(instance)])?;
                }
                let mode = if hibernate { StopMode::Hibernate } else { StopMode::Orderly };
                instances.finish_stop(instances.begin_stop(&[id(instance)])?, mode).value
            }
            Action::Terminate(instance) => {
                instances.finish_terminate(instances.begin_terminate(&[id(instance)])?).value
            }
            Action::Protect { instance, protect } => {
                let change = Modification { termination_protection: Some(protect), ..Modification::default() };
                instances.modify(id(instance), &change).map(drop)
            }
            Action::Reboot(instance) => instances.reboot(id(instance)).map(drop),
            Action::Fork(instance) => {
                let spec = ForkSpec { instance: id(instance), count: 1, name: None, overcommit: false };
                instances.fork(&spec).map(drop)
            }
            Action::PowerOff(instance) => {
                self.node.host().end(id(instance), Some(End::PowerOff));
                Ok(())
            }
            Action::KillVmm(instance) => {
                self.node.host().end(id(instance), None);
                Ok(())
            }
            Action::Write(volume) => {
                self.write(volume);
                Ok(())
            }
            Action::Allocate | Action::Associate { .. } | Action::Disassociate(_) | Action::Release(_) => {
                self.execute_on_address(cloud, action)
            }
            _ => self.execute_on_storage(cloud, action),
        }
    }

    fn execute_on_storage(&mut self, cloud: &Cloud, action: &Action) -> Result<(), CloudError> {
        let volumes = cloud.volumes();
        let id = |volume: usize| self.ids.volumes[volume];
        match *action {
            Action::CreateVolume { snapshot } => {
                let snapshot = snapshot.map(|snapshot| self.ids.snapshots[snapshot].to_string());
                let size = snapshot.is_none().then(|| VolumeSize::from_gib(1)).flatten();
                let spec = VolumeSpec { size, ..VolumeSpec::default() };
                volumes.create(&NewVolume { spec, snapshot, ..NewVolume::default() }).map(drop)
            }
            Action::DeleteVolume(volume) => volumes.delete(id(volume)),
            Action::Attach { volume, instance } => {
                volumes.attach(id(volume), self.ids.instances[instance], None, false).map(drop)
            }
            Action::Detach(volume) => volumes.detach(id(volume), false).map(drop),
            Action::Grow(volume) => {
                let gib = self.expected.volumes[volume].as_ref().map_or(0, |volume| volume.gib) + 1;
                let change = VolumeChange { size: VolumeSize::from_gib(gib), ..VolumeChange::default() };
                volumes.modify(id(volume), &change).map(drop)
            }
            Action::CreateSnapshot(volume) => cloud.snapshots().create(id(volume), "", Default::default()).map(drop),
            Action::DeleteSnapshot(snapshot) => cloud.snapshots().delete(self.ids.snapshots[snapshot]),
            Action::CreateImage(instance) => {
                self.images += 1;
                let name = format!("image-{}", self.images);
                let instance = self.ids.instances[instance];
                cloud.images().create(instance, &name, "", ImageConsistency::Written).map(drop)
            }
            Action::Deregister(image) => cloud.images().deregister(&self.ids.images[image].to_string()).map(drop),
            _ => unreachable!("{action:?} is carried out elsewhere"),
        }
    }

    fn execute_on_address(&self, cloud: &Cloud, action: &Action) -> Result<(), CloudError> {
        let addresses = cloud.addresses();
        let id = |address: usize| self.ids.addresses[address].to_string();
        match *action {
            Action::Allocate => addresses.allocate(Default::default()).map(drop),
            Action::Associate { address, instance, may_move } => {
                let instance = self.ids.instances[instance].to_string();
                addresses.associate(&id(address), &instance, may_move).map(drop)
            }
            Action::Disassociate(address) => addresses.disassociate(&id(address)).map(drop),
            Action::Release(address) => addresses.release(&id(address)).map(drop),
            _ => unreachable!("{action:?} is carried out elsewhere"),
        }
    }

    /// Writes to a volume, if a running machine has it. The write goes to the file that the machine has open.
    fn write(&self, volume: usize) {
        let Some(known) = &self.expected.volumes[volume] else { return };
        let Some(attachment) = known.attachment else { return };
        let mut host = self.node.host();
        let (instance, volume) = (self.ids.instances[attachment.instance], self.ids.volumes[volume]);
        let machine = host.instances.get(&instance).and_then(|instance| instance.machine.as_ref());
        let Some(machine) = machine else { return };
        let file = machine.disks[&volume].clone();
        let content = self.expected.writes + 1 + super::reference::EMBEDDED;
        host.files.get_mut(&file).expect("the machine's file exists").content = Some(content);
    }

    /// Checks that each resource is as it was before a command with a fault, or as it is after the command.
    fn check_faulty(&self, action: &Action, observed: &Model, after: &Model, outcome: &Outcome) {
        let before = &self.expected;
        let found = Model { writes: before.writes, ..observed.clone() };
        let after = Model { writes: before.writes, ..after.clone() };
        if matches!(outcome, Outcome::Returned(Ok(()))) {
            assert_eq!(found, after, "{action:?} was reported as done");
        } else if found != after {
            let undone = without_undone(found, before, action);
            assert_eq!(undone, *before, "{action:?}: {outcome:?} changed only a part");
        }
    }

    fn observe(&mut self, cloud: &Cloud, writes: u64) -> Model {
        let read = cloud.store.read::<_, CloudError>(|tx| {
            let volumes: Vec<VolumeRecord> = tx.list()?;
            let snapshots: Vec<SnapshotRecord> = tx.list()?;
            let images: Vec<ImageRecord> = tx.list()?;
            Ok((volumes, snapshots, images, tx.list::<AddressRecord>()?))
        });
        let (volumes, snapshots, images, addresses) = read.expect("the store can be read");
        let instances = cloud.instances().list().expect("the store can be read");
        let is_imported = |image: &&ImageRecord| image.meta.id != embedded::id();
        add_new(&mut self.ids.instances, instances.iter().map(|record| record.meta.id));
        let attached =
            instances.iter().flat_map(|record| record.status.block_devices.iter().map(|device| device.volume_id));
        add_new(&mut self.ids.volumes, attached.chain(volumes.iter().map(|record| record.meta.id)));
        add_new(&mut self.ids.snapshots, snapshots.iter().map(|record| record.meta.id));
        add_new(&mut self.ids.images, images.iter().filter(is_imported).map(|record| record.meta.id));
        add_new(&mut self.ids.addresses, addresses.iter().map(|record| record.meta.id));
        let host = self.node.host();
        let known = |id: &InstanceId| self.ids.instances.iter().position(|other| other == id);
        let find = |id: &InstanceId| instances.iter().find(|record| record.meta.id == *id);
        let volume = |id: &VolumeId| {
            let record = volumes.iter().find(|record| record.meta.id == *id)?;
            let files = layers::volume_files(record).expect("the backing files are recorded");
            let attachment = record.status.attachment.as_ref().map(|attachment| Attachment {
                instance: known(&attachment.instance_id).expect("the instance exists"),
                delete_on_termination: attachment.delete_on_termination,
            });
            let content = host.content(&files).unwrap_or_else(|why| panic!("{id}: {why}"));
            Some(Volume { gib: record.spec.size / GIB, content, attachment })
        };
        let snapshot = |id: &SnapshotId| {
            let record = snapshots.iter().find(|record| record.meta.id == *id)?;
            let files =
                layers::files(id, &record.status.file, record.status.backing.as_deref()).expect("they are recorded");
            let content = host.content(&files).unwrap_or_else(|why| panic!("{id}: {why}"));
            Some(Snapshot { gib: record.status.size / GIB, content })
        };
        let image = |id: &ImageId| {
            let registered =
                images.iter().find(|record| record.meta.id == *id && record.status.deregistered.is_none())?;
            host.images.get(&registered.meta.id).copied()
        };
        let address = |id: &AllocationId| {
            let record = addresses.iter().find(|record| record.meta.id == *id)?;
            Some(record.instance().map(|instance| known(&instance).expect("the instance exists")))
        };
        Model {
            instances: self.ids.instances.iter().map(|id| self.instance(find(id), &host.instances)).collect(),
            volumes: self.ids.volumes.iter().map(volume).collect(),
            snapshots: self.ids.snapshots.iter().map(snapshot).collect(),
            images: self.ids.images.iter().map(image).collect(),
            addresses: self.ids.addresses.iter().map(address).collect(),
            writes,
        }
    }

    fn instance(
        &self,
        record: Option<&InstanceRecord>,
        hosted: &std::collections::BTreeMap<InstanceId, super::host::HostedInstance>,
    ) -> Instance {
        let record = record.expect("a terminated instance stays visible for an hour");
        let is_hibernated = hosted.get(&record.meta.id).is_some_and(|hosted| hosted.is_hibernated);
        let state = match (record.status.state, is_hibernated) {
            (InstanceState::Running, false) => State::Running,
            (InstanceState::Stopped, true) => State::Hibernated,
            (InstanceState::Stopped, false) => State::Stopped,
            (InstanceState::Terminated, _) => State::Terminated,
            (state, _) => panic!("{} is {state} between commands", record.meta.id),
        };
        let position = |id: VolumeId| self.ids.volumes.iter().position(|known| *known == id);
        Instance {
            state,
            volumes: record.status.block_devices.iter().filter_map(|device| position(device.volume_id)).collect(),
            ends_at_power_off: record.spec.shutdown_behavior == ShutdownBehavior::Terminate,
            is_protected: record.spec.termination_protection,
            can_hibernate: record.spec.hibernation,
        }
    }
}

/// Removes the traces that an undone command may leave: terminated instances of a launch or fork.
fn without_undone(mut found: Model, before: &Model, action: &Action) -> Model {
    let new = found.instances.split_off(before.instances.len().min(found.instances.len()));
    assert!(new.iter().all(|instance| instance.state == State::Terminated), "{action:?} left {new:?}");
    found
}

fn add_new<I: PartialEq>(known: &mut Vec<I>, found: impl Iterator<Item = I>) {
    for id in found {
        if !known.contains(&id) {
            known.push(id);
        }
    }
}

pub(super) fn launch_spec(
    count: u32,
    image: Option<String>,
    extra: bool,
    shutdown_behavior: ShutdownBehavior,
    hibernation: bool,
) -> LaunchSpec {
    let spec = VolumeSpec { size: VolumeSize::from_gib(1), ..VolumeSpec::default() };
    let source = VolumeSource::New { spec, snapshot: None, name: None };
    let volume = VolumeOption { source, device: None, delete_on_termination: None };
    LaunchSpec {
        image,
        size: InstanceSize::of_type(catalog::find(TYPE).expect("the type exists")),
        overridden: false,
        overcommit: false,
        count,
        min_count: count,
        key_name: None,
        user_data: None,
        tags: Default::default(),
        shutdown_behavior,
        termination_protection: false,
        client_token: None,
        dry_run: false,
        cold: true,
        hibernation,
        cmdline: None,
        volumes: extra.then_some(volume).into_iter().collect(),
        volume_tags: Default::default(),
        network: NetworkSpec::default(),
        cpu_credits: None,
        no_limits: false,
        first_boot_timeout: None,
    }
}
