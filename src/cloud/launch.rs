//! `RunInstances`: launches instances from an image, all or none.

use std::collections::BTreeMap;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::attachment::attach;
use super::capacity::{check_capacity, cpus, promised_memory, threads_per_core};
use super::error::CloudError;
use super::instances::Instances;
use super::layers;
use super::limits::check_credits;
use super::lookup::size_of;
use super::names::{ROOT_DEVICE, volume_file};
use super::network::{AddressPool, NetworkSpec, Placement};
use super::seed::check_user_data;
use super::settings::metadata_defaults;
use super::shapes::RootVolume;
use super::template::{self, Start, Template};
use super::{Outcome, Warnings, new_id, now, resolve};
use ec2::block_device::DeviceName;
use ec2::capacity::InstanceSize;
use ec2::credits::CreditMode;
use ec2::key;
use ec2::metadata::MetadataOptions;
use ec2::state::{InstanceState, ShutdownBehavior, StateReason};
use ec2::tag::check_metadata_keys;
use ec2::volume::{AttachmentState, Role, VolumeFigures, VolumeOption, VolumeSize, VolumeSource, VolumeState};
use ec2::{Ec2Error, ErrorCode, ImageId, InstanceId, ReservationId};
use node::embedded;
use node::host::{Guard, Machine, NewFile, Node, Source};
use node::image::Image;
use node::image_memory::ImageMemory;
use store::{
    AttachmentRecord, ClientToken, ImageRecord, InstanceRecord, KeyPairRecord, LaunchRecord, Meta, SizeRecord,
    SnapshotRecord, Transaction, VolumeRecord,
};

pub const MAX_COUNT: u32 = 100;
/// Lifetime of a client token in seconds, as in EC2.
pub(super) const TOKEN_LIFETIME: u64 = 24 * 3600;
/// Maximum length of a client token in bytes.
const TOKEN_LENGTH: usize = 64;
const ROOT_VOLUME_TYPE: &str = "gp3";

#[derive(Debug, Clone)]
pub struct LaunchSpec {
    /// The default is the embedded image.
    pub image: Option<String>,
    pub size: InstanceSize,
    /// The vCPUs or the memory override the instance type's.
    pub overridden: bool,
    pub overcommit: bool,
    pub count: u32,
    /// Minimum number of instances. If the host cannot run `count` instances, as many as fit are launched.
    pub min_count: u32,
    pub key_name: Option<String>,
    /// User data, in Base64.
    pub user_data: Option<String>,
    /// Includes the Name tag.
    pub tags: BTreeMap<String, String>,
    pub shutdown_behavior: ShutdownBehavior,
    pub termination_protection: bool,
    pub client_token: Option<String>,
    pub dry_run: bool,
    /// Cold-boots the instances even if a template exists.
    pub cold: bool,
    pub hibernation: bool,
    /// Appended to the kernel command line.
    pub cmdline: Option<String>,
    /// Volumes in addition to the root volume, and at most one option for the root device.
    pub volumes: Vec<VolumeOption>,
    /// Tags of the root volume and of new volumes.
    pub volume_tags: BTreeMap<String, String>,
    pub network: NetworkSpec,
    /// The default is the instance type's.
    pub cpu_credits: Option<CreditMode>,
    pub no_limits: bool,
    /// Timeout for a boot that makes a template. With `None`, the instances cold-boot if there is no template yet.
    pub first_boot_timeout: Option<Duration>,
}

/// A long step of a launch for which there is no template yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstBoot {
    /// Another launch boots the first guest.
    Waiting,
    Booting,
}

impl LaunchSpec {
    /// Returns the option for the root volume.
    fn root(&self) -> Option<&VolumeOption> {
        self.volumes.iter().find(|option| is_root(option))
    }

    /// Returns the options for volumes in addition to the root volume.
    fn data_volumes(&self) -> impl Iterator<Item = &VolumeOption> {
        self.volumes.iter().filter(|option| !is_root(option))
    }

    /// Returns the specification of each instance.
    fn of_instances(&self, image_id: ImageId) -> store::instance::Spec {
        store::instance::Spec {
            image_id,
            size: SizeRecord {
                instance_type: self.size.instance_type.name.to_string(),
                vcpus: self.size.vcpus,
                threads_per_core: threads_per_core(&self.size),
                memory_mib: self.size.memory_mib,
                overridden: self.overridden,
            },
            key_name: self.key_name.clone(),
            user_data: self.user_data.clone(),
            shutdown_behavior: self.shutdown_behavior,
            termination_protection: self.termination_protection,
            hibernation: self.hibernation,
            cmdline: self.cmdline.clone(),
            cpu_credits: self.cpu_credits,
            no_limits: self.no_limits,
        }
    }
}

fn is_root(option: &VolumeOption) -> bool {
    option.device.as_ref().is_some_and(DeviceName::is_root)
}

#[derive(Debug)]
pub struct Launched {
    /// In launch order.
    pub instances: Vec<InstanceRecord>,
    /// Connections to the VMMs. Empty if an earlier launch with the same client token started them.
    pub machines: Vec<Box<dyn Machine>>,
    /// The instances cold-booted although a template could be made for their size.
    pub lacks_template: bool,
}

/// An instance that has not been started yet. It is locked on its node.
pub(super) struct Prepared {
    pub(super) record: InstanceRecord,
    pub(super) volumes: Vec<VolumeRecord>,
    pub(super) lock: Guard,
}

impl Instances<'_> {
    /// Launches instances. A client token that was used before returns the instances of the earlier launch. Calls
    /// `progress` before a step that takes as long as a boot.
    pub fn launch(&self, spec: &LaunchSpec, progress: &dyn Fn(FirstBoot)) -> Result<Outcome<Launched>, CloudError> {
        let image_record = self.cloud.images().find(spec.image.as_deref().unwrap_or(embedded::NAME))?;
        let parameters = digest(spec, &image_record);
        let before = self.launched_before(spec, &parameters)?;
        if let Some(instances) = before.filter(|_| !spec.dry_run) {
            return Ok(Launched { instances, machines: Vec::new(), lacks_template: false }.into());
        }
        let image = self.cloud.images().open_unless_embedded(&image_record)?;
        // `None` means the embedded image, which has no cloud-init.
        let has_cloud_init = image.is_some_and(|image| image.manifest.cloud_init);
        check_user_data(has_cloud_init, spec.user_data.as_ref())?;
        let spec = &LaunchSpec { count: self.check_launch(spec)?, ..spec.clone() };
        if spec.dry_run {
            return Err(CloudError::refused(
                ErrorCode::DryRunOperation,
                "Request would have succeeded, but DryRun flag is set.",
                None,
            ));
        }
        let (image_record, image) = self.cloud.images().open(spec.image.as_deref())?;
        let start = self.choose_start(spec, &image, progress)?;
        let prepared = match self.prepare(spec, &image_record, &image, start.template(), &parameters)? {
            Ok(prepared) => prepared,
            // Another process used the client token first.
            Err(instances) => return Ok(Launched { instances, machines: Vec::new(), lacks_template: false }.into()),
        };
        let ids: Vec<InstanceId> = prepared.iter().map(|one| one.record.meta.id).collect();
        let mut of_size = Warnings::default();
        if let (None, true, Some(memory)) = (start.template(), can_be_warm(spec, &image), ImageMemory::of(&image)) {
            of_size.extend(size_warning(&memory, &spec.size));
        }
        let lacks_template = matches!(start, Start::Boot) && can_be_warm(spec, &image) && template::can_have(&image);
        let started = match (start, spec.first_boot_timeout) {
            (Start::First(task), Some(timeout)) => {
                progress(FirstBoot::Booting);
                self.start_first(prepared, &image, task, timeout)
            }
            (start, _) => self.start_prepared(prepared, &image, start.template()),
        };
        match started {
            Ok(Outcome { value: machines, mut warnings }) => {
                warnings.extend(of_size);
                let instances = self.settle_running(&ids)?;
                Ok(Outcome { value: Launched { instances, machines, lacks_template }, warnings })
            }
            Err(error) => {
                self.abandon(&ids, &error);
                Err(error)
            }
        }
    }

    /// Chooses how the instances start. Waits while another launch makes the template.
    fn choose_start(
        &self,
        spec: &LaunchSpec,
        image: &Image,
        progress: &dyn Fn(FirstBoot),
    ) -> Result<Start, CloudError> {
        let (home, cpus, memory_mib) = (&self.cloud.home, cpus(&spec.size), spec.size.memory_mib);
        if !can_be_warm(spec, image) {
            return Ok(Start::Boot);
        }
        match spec.first_boot_timeout {
            Some(_) => Start::of(home, image, cpus, memory_mib, &|| progress(FirstBoot::Waiting)),
            None => Ok(template::find(home, image, cpus, memory_mib).map_or(Start::Boot, Start::Template)),
        }
    }

    /// Restores the instances from the template `warm`, or boots them if it is `None`.
    pub(super) fn start_prepared(
        &self,
        prepared: Vec<Prepared>,
        image: &Image,
        warm: Option<&Template>,
    ) -> Result<Outcome<Vec<Box<dyn Machine>>>, CloudError> {
        let root = warm.iter().map(|warm| warm.root().to_string()).collect::<Vec<_>>();
        let plan = |Prepared { record, lock, .. }: Prepared| {
            let source = match warm {
                Some(warm) => Source::Copy { restore: warm.restore(), disks: &root },
                None => Source::Boot,
            };
            self.plan_start(&record, lock, image, &self.cloud.volumes().of(&record)?, source)
        };
        self.start_all(prepared.into_iter().map(plan))
    }

    /// Returns the number of instances that the host has room for, from the minimum to the requested number.
    fn check_launch(&self, spec: &LaunchSpec) -> Result<u32, CloudError> {
        check_credits(spec.cpu_credits, spec.size.instance_type)?;
        if !(1..=MAX_COUNT).contains(&spec.count) {
            let rule = format!("it must be from 1 to {MAX_COUNT}.");
            return Err(Ec2Error::invalid_parameter("MaxCount", spec.count, rule).into());
        }
        if !(1..=spec.count).contains(&spec.min_count) {
            let rule = format!("it must be from 1 to the maximum number, {}.", spec.count);
            return Err(Ec2Error::invalid_parameter("MinCount", spec.min_count, rule).into());
        }
        check_root_option(spec)?;
        if let Some(token) = spec.client_token.as_ref().filter(|it| it.is_empty() || it.len() > TOKEN_LENGTH) {
            let rule = format!("it must be 1 to {TOKEN_LENGTH} characters long.");
            return Err(Ec2Error::invalid_parameter("ClientToken", token, rule).into());
        }
        let defaults = self.cloud.settings().metadata_defaults()?.applied(MetadataOptions::default());
        if spec.network.metadata.unwrap_or_default().applied(defaults).tags {
            check_metadata_keys(spec.tags.keys().map(String::as_str))?;
        }
        // The launch creates a missing default security group; the check must not.
        self.cloud
            .store
            .rehearse::<_, CloudError>(|tx| Placement::choose(tx, self.cloud.node(), &spec.network).map(drop))?;
        if spec.count > 1 && spec.network.private_ip.is_some() {
            let what = format!(
                "A private address can be assigned to only one instance, but the launch creates {} instances.",
                spec.count
            );
            return Err(CloudError::refused(ErrorCode::InvalidParameterCombination, what, None));
        }
        let (pair, promised) = self.cloud.store.read::<_, CloudError>(|tx| {
            let pair = spec.key_name.as_ref().map(|name| tx.get::<KeyPairRecord>(name)).transpose()?.flatten();
            Ok((pair, promised_memory(tx)?))
        })?;
        if let (Some(name), None) = (&spec.key_name, pair) {
            return Err(key::not_found(name).into());
        }
        let existing = |option: &VolumeOption| matches!(option.source, VolumeSource::Existing(_));
        if spec.count > 1 && spec.volumes.iter().any(existing) {
            return Err(CloudError::refused(
                ErrorCode::InvalidParameterValue,
                format!(
                    "A volume can be attached to only one instance, but the launch creates {} instances.",
                    spec.count
                ),
                Some("Create each volume from a snapshot instead: `--volume snapshot=SNAPSHOT`.".into()),
            ));
        }
        let instance_type = spec.size.instance_type;
        if spec.hibernation && !instance_type.hibernation {
            return Err(CloudError::refused(
                ErrorCode::UnsupportedHibernationConfiguration,
                format!("The instance type '{}' does not support hibernation.", instance_type.name),
                Some("See HibernationSupported in `wisp types --output json`.".into()),
            ));
        }
        let check = |count| check_capacity(self.cloud.node(), &spec.size, count, promised, spec.overcommit);
        match (spec.min_count..=spec.count).rev().find(|count| check(*count).is_ok()) {
            Some(count) => Ok(count),
            None => check(spec.min_count).map(|()| spec.min_count),
        }
    }

    fn launched_before(&self, spec: &LaunchSpec, parameters: &str) -> Result<Option<Vec<InstanceRecord>>, CloudError> {
        self.cloud.store.read(|tx| with_token(tx, spec.client_token.as_deref(), parameters))
    }

    /// Creates the directories, root volumes and records of all instances, or none of them. The inner error holds the
    /// instances of a concurrent launch with the same client token.
    fn prepare(
        &self,
        spec: &LaunchSpec,
        image_record: &ImageRecord,
        image: &Image,
        warm: Option<&Template>,
        parameters: &str,
    ) -> Result<Result<Vec<Prepared>, Vec<InstanceRecord>>, CloudError> {
        // These locks keep other commands from sweeping files that have no record yet.
        let _instances = self.cloud.node.instances().lock_all()?;
        let _volumes = self.cloud.node.volumes().lock()?;
        let reservation = new_id();
        let mut prepared = Vec::new();
        // An invalid snapshot reference must fail before anything is created.
        let snapshots = self.snapshots_of(spec)?;
        for index in 0..spec.count {
            match self.prepare_one(&snapshots, spec, image_record, (image, warm), reservation, index) {
                Ok(one) => prepared.push(one),
                Err(error) => {
                    self.discard(&prepared);
                    return Err(error);
                }
            }
        }
        let inserted = self.cloud.store.write::<_, CloudError>(|tx| {
            if let Some(instances) = with_token(tx, spec.client_token.as_deref(), parameters)? {
                return Ok(Err(instances));
            }
            if let Some(token) = &spec.client_token {
                let (token, parameters) = (token.clone(), parameters.to_string());
                tx.set(&ClientToken { token, parameters, reservation_id: reservation, created: now() })?;
            }
            let place = Placement::choose(tx, self.cloud.node(), &spec.network)?;
            let imds_support = image_record.spec.imds_support.or(image.manifest.imds_support);
            let metadata = metadata_defaults(tx)?.applied(MetadataOptions::of_image(imds_support));
            let mut addresses = AddressPool::taken(tx, self.cloud.node())?;
            for (one, sequence) in prepared.iter_mut().zip(InstanceRecord::next_sequence(tx)?..) {
                let mut network = place.interface(&spec.network, metadata);
                spec.network.private_ip.map_or(Ok(()), |address| addresses.claim(&mut network, address))?;
                addresses.give(&mut network)?;
                one.record.status.network = Some(network);
                for option in spec.data_volumes() {
                    if let VolumeSource::Existing(reference) = &option.source {
                        let mut volume = resolve::volume(tx, reference)?;
                        let (device, delete_on_termination) = (option.device.clone(), option.deleted_on_termination());
                        attach(&mut one.record, &mut volume, device, delete_on_termination)?;
                        tx.put(&mut volume)?;
                    }
                }
                one.record.status.launch.sequence = sequence;
                tx.insert(&mut one.record)?;
                one.volumes.iter_mut().try_for_each(|volume| tx.insert(volume))?;
            }
            Ok(Ok(()))
        });
        if !matches!(inserted, Ok(Ok(()))) {
            self.discard(&prepared);
        }
        Ok(inserted?.map(|()| prepared))
    }

    /// Returns the source snapshot of each volume in order, or `None` for a volume without one.
    fn snapshots_of(&self, spec: &LaunchSpec) -> Result<Vec<Option<SnapshotRecord>>, CloudError> {
        let snapshot = |option: &VolumeOption| match &option.source {
            VolumeSource::New { snapshot: Some(reference), .. } => self.cloud.snapshots().find(reference).map(Some),
            _ => Ok(None),
        };
        spec.data_volumes().map(snapshot).collect()
    }

    fn make_volumes(
        &self,
        spec: &LaunchSpec,
        snapshots: &[Option<SnapshotRecord>],
        record: &mut InstanceRecord,
        made: &mut Vec<VolumeRecord>,
    ) -> Result<(), CloudError> {
        for (option, source) in spec.data_volumes().zip(snapshots) {
            let VolumeSource::New { spec: new, name, .. } = &option.source else { continue };
            let mut tags = spec.volume_tags.clone();
            tags.extend(name.iter().map(|name| ("Name".to_string(), name.clone())));
            let mut volume = self.cloud.volumes().make(new, source.as_ref(), tags)?;
            attach(record, &mut volume, option.device.clone(), option.deleted_on_termination())?;
            made.push(volume);
        }
        Ok(())
    }

    fn prepare_one(
        &self,
        snapshots: &[Option<SnapshotRecord>],
        spec: &LaunchSpec,
        image_record: &ImageRecord,
        (image, warm): (&Image, Option<&Template>),
        reservation_id: ReservationId,
        launch_index: u32,
    ) -> Result<Prepared, CloudError> {
        let time = now();
        let id: InstanceId = new_id();
        let lock = self.cloud.node.instances().create(id)?;
        let root = self.make_root_volume(spec, image_record, (image, warm), id, time).inspect_err(|_| {
            // The original error is more useful than one from the cleanup.
            let _ = self.cloud.node.instances().remove(id);
        })?;
        let launch =
            LaunchRecord { reservation_id, launch_index, image_name: image_record.spec.name.clone(), sequence: 0 };
        let record = InstanceRecord {
            meta: Meta { client_token: spec.client_token.clone(), ..Meta::new(id, time, spec.tags.clone()) },
            spec: spec.of_instances(image_record.meta.id),
            status: store::instance::Status {
                launch,
                state: InstanceState::Pending,
                state_reason: None,
                state_transition_reason: String::new(),
                launch_time: time,
                starts: 0,
                terminated: None,
                block_devices: root.iter().filter_map(VolumeRecord::mapping).collect(),
                network: None,
                credits: None,
            },
        };
        let (mut record, mut volumes) = (record, root.into_iter().collect());
        self.make_volumes(spec, snapshots, &mut record, &mut volumes)
            .inspect_err(|_| self.discard_one(&volumes, id))?;
        Ok(Prepared { record, volumes, lock })
    }

    /// Creates an overlay over the image's root file system: empty, or a copy of the template's overlay.
    fn make_root_volume(
        &self,
        spec: &LaunchSpec,
        image_record: &ImageRecord,
        (image, warm): (&Image, Option<&Template>),
        instance_id: InstanceId,
        time: u64,
    ) -> Result<Option<VolumeRecord>, CloudError> {
        let Some(root) = &image.manifest.root else { return Ok(None) };
        let figures = root_figures(spec, image)?;
        let id = new_id();
        let file = volume_file(id, 1);
        let base = layers::of_image(image_record.meta.id, root);
        let size = match warm.and_then(Template::layer) {
            Some(layer) => template::copy_layer(layer, &self.cloud.home.volumes().join(&file))?,
            None => self
                .cloud
                .node
                .volumes()
                .create(&file, &NewFile::Overlay { base: &base, size: figures.map(|figures| figures.size.bytes()) })?,
        };
        Ok(Some(VolumeRecord {
            meta: Meta::new(id, time, spec.volume_tags.clone()),
            spec: store::volume::Spec {
                size,
                volume_type: figures.map_or(ROOT_VOLUME_TYPE, |figures| figures.volume_type.as_str()).into(),
                iops: figures.and_then(|figures| figures.iops),
                throughput: figures.and_then(|figures| figures.throughput),
                snapshot_id: None,
                zone: None,
            },
            status: store::volume::Status {
                state: VolumeState::InUse,
                image_id: Some(image_record.meta.id),
                file,
                file_number: 1,
                backing: Some(vec![layers::recorded(base)]),
                attachment: Some(AttachmentRecord {
                    instance_id,
                    device_name: ROOT_DEVICE.into(),
                    attach_time: time,
                    delete_on_termination: spec.root().is_none_or(VolumeOption::deleted_on_termination),
                    state: AttachmentState::Attached,
                }),
                modification: None,
            },
        }))
    }

    /// Removes the files that [`Self::prepare`] created. The next command removes any that are left.
    pub(super) fn discard(&self, prepared: &[Prepared]) {
        prepared.iter().for_each(|one| self.discard_one(&one.volumes, one.record.meta.id));
    }

    pub(super) fn discard_one(&self, volumes: &[VolumeRecord], id: InstanceId) {
        for volume in volumes {
            let _ = self.cloud.node.volumes().remove(&volume.status.file);
        }
        let _ = self.cloud.node.instances().remove(id);
    }

    /// Marks pending instances as running, and returns all records.
    pub(super) fn settle_running(&self, ids: &[InstanceId]) -> Result<Vec<InstanceRecord>, CloudError> {
        self.cloud.store.write(|tx| {
            let mut records = Vec::new();
            for id in ids {
                let Some(mut record) = tx.get::<InstanceRecord>(&id.to_string())? else { continue };
                if record.status.state == InstanceState::Pending {
                    record.status.state = InstanceState::Running;
                    record.clear_reason();
                    record.status.starts += 1;
                    tx.put(&mut record)?;
                }
                records.push(record);
            }
            Ok(records)
        })
    }

    pub(super) fn abandon(&self, ids: &[InstanceId], error: &CloudError) {
        let reason = StateReason::launch_failed(&error.to_string());
        for id in ids {
            if let Err(error) = self.end_and_terminate(*id, &reason) {
                log::warn!("cannot clean up {id}; the next command will try again: {error}");
            }
        }
    }
}

/// Returns true if a template can replace a boot of the image.
fn can_be_warm(spec: &LaunchSpec, image: &Image) -> bool {
    !spec.cold
        && spec.cmdline.is_none()
        && spec.data_volumes().next().is_none()
        && spec.root().is_none_or(keeps_size)
        && image.manifest.root.is_some()
        && spec.size.instance_type.instance_store().is_empty()
}

/// Returns true if an option for the root volume leaves its size to the image. A template's guest knows that size.
fn keeps_size(option: &VolumeOption) -> bool {
    matches!(&option.source, VolumeSource::New { spec, .. } if spec.size.is_none())
}

/// Checks the option for the root volume, which is always a copy of the image's root file system.
fn check_root_option(spec: &LaunchSpec) -> Result<(), CloudError> {
    let device = |option: &VolumeOption| option.device.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut options = spec.volumes.iter().filter(|option| is_root(option));
    if let (Some(_), Some(second)) = (options.next(), options.next()) {
        return Err(Ec2Error::invalid_parameter("BlockDeviceMapping", device(second), "it is specified twice.").into());
    }
    match spec.root() {
        Some(VolumeOption { source: VolumeSource::New { snapshot: None, .. }, .. }) | None => Ok(()),
        Some(other) => {
            let rule = "the root volume is created from the image.";
            Err(Ec2Error::invalid_parameter("BlockDeviceMapping", device(other), rule).into())
        }
    }
}

/// Returns the size, type, IOPS and throughput of the root volume, or `None` without an option for it.
fn root_figures(spec: &LaunchSpec, image: &Image) -> Result<Option<VolumeFigures>, CloudError> {
    let Some(VolumeOption { source: VolumeSource::New { spec, .. }, .. }) = spec.root() else { return Ok(None) };
    let of_image = RootVolume::of(image).and_then(|root| VolumeSize::that_holds(root.bytes));
    Ok(Some(spec.figures(of_image, Role::Root)?))
}

/// Returns a warning if the launch cannot restore the image's memory because its size differs.
fn size_warning(memory: &ImageMemory, size: &InstanceSize) -> Option<String> {
    (!memory.is_of(cpus(size), size.memory_mib)).then(|| {
        let ImageMemory { cpus, memory_mib, .. } = memory;
        format!(
            "the image's memory was saved with {} vCPUs and {memory_mib} MiB; instances of other sizes cold-boot.",
            cpus.count
        )
    })
}

/// Checks that the host can run `count` forks of an instance. Forks share memory, so only vCPUs are checked.
pub(super) fn check_forks(
    node: &dyn Node,
    record: &InstanceRecord,
    count: u32,
    overcommit: bool,
) -> Result<(), CloudError> {
    let size = InstanceSize { memory_mib: 0, ..size_of(record)? };
    check_capacity(node, &size, count, 0, overcommit)
}

/// Returns the instances that were launched with `token`. Fails if the parameters differ or all are terminated.
fn with_token(
    tx: &Transaction,
    token: Option<&str>,
    parameters: &str,
) -> Result<Option<Vec<InstanceRecord>>, CloudError> {
    let Some(token) = token else { return Ok(None) };
    let Some(used) = tx.get::<ClientToken>(token)? else { return Ok(None) };
    if used.created + TOKEN_LIFETIME <= now() {
        return Ok(None);
    }
    if used.parameters != parameters {
        return Err(CloudError::refused(
            ErrorCode::IdempotentParameterMismatch,
            format!("The client token '{token}' was already used for a launch with different parameters."),
            Some("Use a different token for this launch.".into()),
        ));
    }
    let mut instances: Vec<InstanceRecord> = tx.list()?;
    instances.retain(|record| record.status.launch.reservation_id == used.reservation_id);
    // Records of terminated instances are removed before the token expires.
    if instances
        .iter()
        .all(|record| matches!(record.status.state, InstanceState::ShuttingDown | InstanceState::Terminated))
    {
        return Err(CloudError::refused(
            ErrorCode::IdempotentInstanceTerminated,
            format!("The instances launched with the client token '{token}' have been terminated."),
            Some("Use a different token to launch again.".into()),
        ));
    }
    instances.sort_by_key(|record| record.status.launch.launch_index);
    Ok(Some(instances))
}

fn digest(spec: &LaunchSpec, image: &ImageRecord) -> String {
    let parameters = serde_json::json!([
        image.meta.id,
        spec.size.instance_type.name,
        spec.size.vcpus,
        spec.size.memory_mib,
        spec.count,
        spec.key_name,
        spec.user_data,
        spec.tags,
        spec.shutdown_behavior,
        spec.termination_protection,
        spec.hibernation,
        spec.cmdline,
        format!("{:?}", spec.volumes),
        format!("{:?}", spec.network),
    ]);
    // Added only if set, so that the digests of existing tokens stay valid.
    let limits = (spec.cpu_credits.is_some() || spec.no_limits)
        .then(|| serde_json::json!([spec.cpu_credits, spec.no_limits]).to_string());
    let more = (spec.min_count != spec.count || !spec.volume_tags.is_empty())
        .then(|| serde_json::json!({"MinCount": spec.min_count, "VolumeTags": spec.volume_tags}).to_string());
    let parameters = [Some(parameters.to_string()), limits, more].into_iter().flatten().collect::<String>();
    disk::sparse::hex(&Sha256::digest(parameters))
}
