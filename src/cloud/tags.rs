//! `CreateTags` and `DeleteTags` for all resources with tags.

use std::collections::BTreeMap;

use super::error::CloudError;
use super::lookup::{by_id, get};
use super::network::NetworkChange;
use super::{Cloud, Outcome, Warnings, resolve};
use ec2::id::{
    Allocation, AllocationId, Id, Image, InternetGateway, InternetGatewayId, LaunchTemplate, LaunchTemplateId,
    ResourceKind, RouteTable, RouteTableId, SecurityGroup, SecurityGroupId, SecurityGroupRule, SecurityGroupRuleId,
    Snapshot, Subnet, SubnetId, Volume, Vpc, VpcId,
};
use ec2::tag::{Tag, check_key, check_metadata_keys, with_tags};
use ec2::{Ec2Error, ImageId, InstanceId, KeyPairId, SnapshotId, VolumeId};
use store::{
    AddressRecord, ImageRecord, InstanceRecord, InternetGatewayRecord, KeyPairRecord, LaunchTemplateRecord,
    RouteTableRecord, SecurityGroupRecord, SnapshotRecord, SubnetRecord, Transaction, VolumeRecord, VpcRecord,
};

type TagMap = BTreeMap<String, String>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    Instance(InstanceId),
    Volume(VolumeId),
    Snapshot(SnapshotId),
    Image(ImageId),
    Vpc(VpcId),
    Subnet(SubnetId),
    SecurityGroup(SecurityGroupId),
    LaunchTemplate(LaunchTemplateId),
    InternetGateway(InternetGatewayId),
    RouteTable(RouteTableId),
    SecurityGroupRule(SecurityGroupRuleId),
    KeyPair(KeyPairId),
    /// An elastic address.
    Address(AllocationId),
}

impl Resource {
    pub fn id(self) -> String {
        match self {
            Resource::Instance(id) => id.to_string(),
            Resource::Volume(id) => id.to_string(),
            Resource::Snapshot(id) => id.to_string(),
            Resource::Image(id) => id.to_string(),
            Resource::Vpc(id) => id.to_string(),
            Resource::Subnet(id) => id.to_string(),
            Resource::SecurityGroup(id) => id.to_string(),
            Resource::SecurityGroupRule(id) => id.to_string(),
            Resource::KeyPair(id) => id.to_string(),
            Resource::LaunchTemplate(id) => id.to_string(),
            Resource::InternetGateway(id) => id.to_string(),
            Resource::RouteTable(id) => id.to_string(),
            Resource::Address(id) => id.to_string(),
        }
    }

    /// Returns the resource type (EC2 API Reference, `TagDescription`).
    pub fn resource_type(self) -> &'static str {
        match self {
            Resource::Instance(_) => "instance",
            Resource::Volume(_) => "volume",
            Resource::Snapshot(_) => "snapshot",
            Resource::Image(_) => "image",
            Resource::Vpc(_) => "vpc",
            Resource::Subnet(_) => "subnet",
            Resource::SecurityGroup(_) => "security-group",
            Resource::SecurityGroupRule(_) => "security-group-rule",
            Resource::KeyPair(_) => "key-pair",
            Resource::LaunchTemplate(_) => "launch-template",
            Resource::InternetGateway(_) => "internet-gateway",
            Resource::RouteTable(_) => "route-table",
            Resource::Address(_) => "elastic-ip",
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Tags<'a> {
    pub(crate) cloud: &'a Cloud,
}

impl Tags<'_> {
    /// Finds a resource. The prefix of an ID determines its kind. A name is looked up among instances, volumes,
    /// snapshots, VPCs, subnets, gateways, route tables, elastic addresses and images, in this order. The name of a security group or
    /// launch template is not a tag, so only its ID matches.
    pub fn find(&self, reference: &str) -> Result<Resource, CloudError> {
        if ImageId::looks_like(reference) {
            return Ok(Resource::Image(self.cloud.images().find(reference)?.meta.id));
        }
        let found = self.cloud.store.read(|tx| find(tx, reference))?;
        match found {
            Some(resource) => Ok(resource),
            None => match self.cloud.images().find(reference) {
                Ok(record) => Ok(Resource::Image(record.meta.id)),
                Err(_) => Err(unknown_reference(reference).into()),
            },
        }
    }

    /// Finds a resource by its full ID. Unlike [`find`](Self::find), takes no name and no prefix.
    pub fn find_by_id(&self, id: &str) -> Result<Resource, CloudError> {
        if let Ok(id) = id.parse::<KeyPairId>() {
            self.cloud.store.read(|tx| key_pair(tx, id))?;
            return Ok(Resource::KeyPair(id));
        }
        if let Ok(id) = id.parse::<SecurityGroupRuleId>() {
            self.cloud.store.read(|tx| group_of_rule(tx, id))?;
            return Ok(Resource::SecurityGroupRule(id));
        }
        let resource = self.find(id)?;
        if resource.id() == id { Ok(resource) } else { Err(unknown_reference(id).into()) }
    }

    /// Returns all resources that have tags, with their tags.
    pub fn list(&self) -> Result<Vec<(Resource, TagMap)>, CloudError> {
        fn add<R: store::Resource>(
            tx: &Transaction,
            found: &mut Vec<(Resource, TagMap)>,
            resource: fn(R::Id) -> Resource,
        ) -> Result<(), CloudError> {
            let records = tx.list::<R>()?.into_iter().filter(|record| !record.meta().tags.is_empty());
            found.extend(records.map(|record| (resource(record.meta().id), record.meta().tags.clone())));
            Ok(())
        }
        self.cloud.store.read(|tx| {
            let mut found = Vec::new();
            add::<AddressRecord>(tx, &mut found, Resource::Address)?;
            add::<ImageRecord>(tx, &mut found, Resource::Image)?;
            add::<InstanceRecord>(tx, &mut found, Resource::Instance)?;
            add::<InternetGatewayRecord>(tx, &mut found, Resource::InternetGateway)?;
            add::<KeyPairRecord>(tx, &mut found, Resource::KeyPair)?;
            add::<LaunchTemplateRecord>(tx, &mut found, Resource::LaunchTemplate)?;
            add::<RouteTableRecord>(tx, &mut found, Resource::RouteTable)?;
            add::<SecurityGroupRecord>(tx, &mut found, Resource::SecurityGroup)?;
            for rule in tx.list::<SecurityGroupRecord>()?.into_iter().flat_map(|group| group.spec.rules) {
                if !rule.tags.is_empty() {
                    found.push((Resource::SecurityGroupRule(rule.id), rule.tags));
                }
            }
            add::<SnapshotRecord>(tx, &mut found, Resource::Snapshot)?;
            add::<SubnetRecord>(tx, &mut found, Resource::Subnet)?;
            add::<VolumeRecord>(tx, &mut found, Resource::Volume)?;
            add::<VpcRecord>(tx, &mut found, Resource::Vpc)?;
            Ok(found)
        })
    }

    /// Sets and removes tags of a resource. Returns all of its tags after the change.
    pub fn change(&self, resource: Resource, set: &[Tag], remove: &[String]) -> Result<Outcome<TagMap>, CloudError> {
        if matches!(resource, Resource::Image(_)) {
            self.cloud.images().register_embedded()?;
        }
        let (tags, network_change) = self.cloud.store.write::<_, CloudError>(|tx| {
            if let Resource::Instance(id) = resource
                && get(tx, id)?.serves_tags()
            {
                check_metadata_keys(set.iter().map(Tag::key))?;
            }
            let change = |tags: &mut TagMap| -> Result<(), Ec2Error> {
                remove.iter().try_for_each(|key| check_key(key))?;
                *tags = with_tags(tags, set.iter().cloned())?;
                tags.retain(|key, _| !remove.contains(key));
                Ok(())
            };
            let tags = match resource {
                Resource::Instance(id) => update::<InstanceRecord, _>(tx, id, &change),
                Resource::Volume(id) => update::<VolumeRecord, _>(tx, id, &change),
                Resource::Snapshot(id) => update::<SnapshotRecord, _>(tx, id, &change),
                Resource::Image(id) => update::<ImageRecord, _>(tx, id, &change),
                Resource::Vpc(id) => update::<VpcRecord, _>(tx, id, &change),
                Resource::Subnet(id) => update::<SubnetRecord, _>(tx, id, &change),
                Resource::SecurityGroup(id) => update::<SecurityGroupRecord, _>(tx, id, &change),
                Resource::InternetGateway(id) => update::<InternetGatewayRecord, _>(tx, id, &change),
                Resource::RouteTable(id) => update::<RouteTableRecord, _>(tx, id, &change),
                Resource::LaunchTemplate(id) => update::<LaunchTemplateRecord, _>(tx, id, &change),
                Resource::SecurityGroupRule(id) => {
                    let mut group = group_of_rule(tx, id)?;
                    let mut tags = TagMap::new();
                    for rule in group.spec.rules.iter_mut().filter(|rule| rule.id == id) {
                        change(&mut rule.tags)?;
                        tags.clone_from(&rule.tags);
                    }
                    tx.put(&mut group)?;
                    Ok(tags)
                }
                Resource::KeyPair(id) => {
                    let mut record = key_pair(tx, id)?;
                    change(&mut record.meta.tags)?;
                    tx.put(&mut record)?;
                    Ok(record.meta.tags)
                }
                Resource::Address(id) => update::<AddressRecord, _>(tx, id, &change),
            }?;
            let is_instance = matches!(resource, Resource::Instance(_));
            Ok((tags, is_instance.then(|| NetworkChange::begin(tx)).transpose()?))
        })?;
        let mut warnings = Warnings::default();
        // The metadata service may serve the instance's tags.
        if let (Resource::Instance(id), Some(change)) = (resource, network_change) {
            let record = self.cloud.instances().find(&id.to_string())?;
            warnings = self.cloud.interfaces().push(&record)?;
            self.cloud.interfaces().finish(change)?;
        }
        Ok(Outcome { value: tags, warnings })
    }
}

/// For one kind of resource: true if the reference looks like one of its IDs, and the function that looks it up.
type Candidate<'a> = (bool, &'a dyn Fn() -> Result<Resource, CloudError>);

/// Finds a resource that is not an image.
fn find(tx: &Transaction, reference: &str) -> Result<Option<Resource>, CloudError> {
    let instance = || resolve::instance(tx, reference).map(|record| Resource::Instance(record.meta.id));
    let volume = || resolve::volume(tx, reference).map(|record| Resource::Volume(record.meta.id));
    let snapshot = || resolve::snapshot(tx, reference).map(|record| Resource::Snapshot(record.meta.id));
    let vpc = || resolve::vpc(tx, reference).map(|record| Resource::Vpc(record.meta.id));
    let subnet = || resolve::subnet(tx, reference).map(|record| Resource::Subnet(record.meta.id));
    let gateway = || resolve::internet_gateway(tx, reference).map(|record| Resource::InternetGateway(record.meta.id));
    let table = || resolve::route_table(tx, reference).map(|record| Resource::RouteTable(record.meta.id));
    let address = || resolve::address(tx, reference).map(|record| Resource::Address(record.meta.id));
    let group =
        || resolve::security_group(tx, reference, |_| true).map(|record| Resource::SecurityGroup(record.meta.id));
    if SecurityGroupId::looks_like(reference) {
        return group().map(Some);
    }
    if LaunchTemplateId::looks_like(reference) {
        let template = resolve::launch_template(tx, reference)?;
        return Ok(Some(Resource::LaunchTemplate(template.meta.id)));
    }
    // A reference that looks like an ID of one kind is not looked up as a name of another.
    let candidates: [Candidate; 8] = [
        (InstanceId::looks_like(reference), &instance),
        (VolumeId::looks_like(reference), &volume),
        (SnapshotId::looks_like(reference), &snapshot),
        (VpcId::looks_like(reference), &vpc),
        (SubnetId::looks_like(reference), &subnet),
        (InternetGatewayId::looks_like(reference), &gateway),
        (RouteTableId::looks_like(reference), &table),
        (AllocationId::looks_like(reference), &address),
    ];
    if let Some((_, named)) = candidates.iter().find(|(is_named, _)| *is_named) {
        return named().map(Some);
    }
    for (_, candidate) in candidates {
        match candidate() {
            // A malformed ID of one kind may be the name of another.
            Err(CloudError::Ec2(error)) if error.code().is_unknown_reference() => {}
            found => return found.map(Some),
        }
    }
    Ok(None)
}

/// Returns the error for a reference that matches nothing. One without a known prefix is treated as an instance's.
fn unknown_reference(reference: &str) -> Ec2Error {
    fn error_for<K: ResourceKind>(reference: &str) -> Option<Ec2Error> {
        Id::<K>::has_prefix(reference).then(|| Id::<K>::not_found(reference))
    }
    let kinds = [
        error_for::<Volume>,
        error_for::<Snapshot>,
        error_for::<Image>,
        error_for::<Vpc>,
        error_for::<Subnet>,
        error_for::<SecurityGroup>,
        error_for::<LaunchTemplate>,
        error_for::<InternetGateway>,
        error_for::<RouteTable>,
        error_for::<SecurityGroupRule>,
        error_for::<Allocation>,
    ];
    kinds.iter().find_map(|kind| kind(reference)).unwrap_or_else(|| InstanceId::not_found(reference))
}

/// Finds a key pair by its ID. Its key in the store is its name.
fn key_pair(tx: &Transaction, id: KeyPairId) -> Result<KeyPairRecord, CloudError> {
    let pair = tx.list::<KeyPairRecord>()?.into_iter().find(|pair| pair.meta.id == id);
    pair.ok_or_else(|| KeyPairId::not_found(&id.to_string()).into())
}

/// Returns the security group that has a rule.
fn group_of_rule(tx: &Transaction, id: SecurityGroupRuleId) -> Result<SecurityGroupRecord, CloudError> {
    let has_rule = |group: &SecurityGroupRecord| group.spec.rules.iter().any(|rule| rule.id == id);
    let group = tx.list::<SecurityGroupRecord>()?.into_iter().find(has_rule);
    group.ok_or_else(|| SecurityGroupRuleId::not_found(&id.to_string()).into())
}

/// Changes the tags of one record, and returns them.
fn update<R: store::Resource<Id = Id<K>>, K: ResourceKind>(
    tx: &Transaction,
    id: Id<K>,
    change: &dyn Fn(&mut TagMap) -> Result<(), Ec2Error>,
) -> Result<TagMap, CloudError> {
    let mut record: R = by_id(tx, id)?;
    change(&mut record.meta_mut().tags)?;
    tx.put(&mut record)?;
    Ok(record.meta().tags.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec2::ErrorCode;

    #[test]
    fn unknown_reference_error_code_follows_prefix() {
        for (reference, code) in [
            ("web", ErrorCode::InvalidInstanceIdNotFound),
            ("i-123", ErrorCode::InvalidInstanceIdMalformed),
            ("vol-zz", ErrorCode::InvalidVolumeIdMalformed),
            ("snap-zz", ErrorCode::InvalidSnapshotIdMalformed),
            ("ami-zz", ErrorCode::InvalidAmiIdMalformed),
            ("sg-zz", ErrorCode::InvalidGroupIdMalformed),
            ("sg-0123456789abcdef0", ErrorCode::InvalidGroupNotFound),
            ("vpc-zz", ErrorCode::InvalidVpcIdMalformed),
            ("subnet-zz", ErrorCode::InvalidSubnetIdMalformed),
            ("igw-zz", ErrorCode::InvalidInternetGatewayIdMalformed),
            ("rtb-zz", ErrorCode::InvalidRouteTableIdMalformed),
            ("lt-zz", ErrorCode::InvalidLaunchTemplateIdMalformed),
            ("eipalloc-zz", ErrorCode::InvalidAllocationIdMalformed),
        ] {
            assert_eq!(unknown_reference(reference).code(), code, "{reference}");
        }
    }
}
