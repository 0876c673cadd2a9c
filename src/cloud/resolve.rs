//! Finds the resource that the user refers to by its ID, a unique prefix of its ID, or its name (the `Name` tag).

use super::error::CloudError;
use ec2::Ec2Error;
use ec2::id::{Id, ResourceKind};
use ec2::launch_template;
use ec2::state::InstanceState;
use store::{
    AddressRecord, InstanceRecord, InternetGatewayRecord, LaunchTemplateRecord, RouteTableRecord, SecurityGroupRecord,
    SnapshotRecord, SubnetRecord, Transaction, VolumeRecord, VpcRecord,
};

fn find<K: ResourceKind>(reference: &str, known: &[(Id<K>, Option<&str>)]) -> Result<Id<K>, Ec2Error> {
    // A name cannot hide a resource whose ID it has.
    if let Some((id, _)) = known.iter().find(|(id, _)| reference.parse() == Ok(*id)) {
        return Ok(*id);
    }
    // Another resource may have the ID of a deleted one as its name, and a request for the ID must not find it.
    if reference.parse::<Id<K>>().is_ok() {
        return Err(Id::<K>::not_found(reference));
    }
    let named: Vec<Id<K>> = known.iter().filter(|(_, name)| *name == Some(reference)).map(|(id, _)| *id).collect();
    match named.as_slice() {
        [only] => Ok(*only),
        [] if Id::<K>::looks_like(reference) => Id::find(reference, known.iter().map(|(id, _)| *id)),
        [] => Err(Id::<K>::not_found(reference)),
        several => Err(Id::ambiguous(reference, several)),
    }
}

/// Finds an instance. A name never finds a terminated instance, because another instance may have that name now.
pub fn instance(tx: &Transaction, reference: &str) -> Result<InstanceRecord, CloudError> {
    let gone = |record: &InstanceRecord| record.status.state == InstanceState::Terminated;
    one_of(tx.list()?, reference, |record| (record.meta.id, if gone(record) { None } else { record.meta.name() }))
}

pub fn volume(tx: &Transaction, reference: &str) -> Result<VolumeRecord, CloudError> {
    one_of(tx.list()?, reference, |record: &VolumeRecord| (record.meta.id, record.meta.name()))
}

pub fn snapshot(tx: &Transaction, reference: &str) -> Result<SnapshotRecord, CloudError> {
    one_of(tx.list()?, reference, |record: &SnapshotRecord| (record.meta.id, record.meta.name()))
}

/// Finds a security group among those that `is_meant` accepts. A group's name is an attribute, not a tag.
pub fn security_group(
    tx: &Transaction,
    reference: &str,
    is_meant: impl Fn(&SecurityGroupRecord) -> bool,
) -> Result<SecurityGroupRecord, CloudError> {
    let groups = tx.list()?.into_iter().filter(is_meant).collect();
    one_of(groups, reference, |record: &SecurityGroupRecord| (record.meta.id, Some(record.spec.name.as_str())))
}

/// Finds a VPC. `default` is the name of the default VPC, unless it has a `Name` tag.
pub fn vpc(tx: &Transaction, reference: &str) -> Result<VpcRecord, CloudError> {
    let name = |record: &VpcRecord| if record.status.is_default { Some("default") } else { None };
    one_of(tx.list()?, reference, |record: &VpcRecord| (record.meta.id, record.meta.name().or(name(record))))
}

pub fn subnet(tx: &Transaction, reference: &str) -> Result<SubnetRecord, CloudError> {
    one_of(tx.list()?, reference, |record: &SubnetRecord| (record.meta.id, record.meta.name()))
}

/// Finds a launch template. Its name is an attribute, not a tag.
pub fn launch_template(tx: &Transaction, reference: &str) -> Result<LaunchTemplateRecord, CloudError> {
    let found = one_of(tx.list()?, reference, |record: &LaunchTemplateRecord| {
        (record.meta.id, Some(record.spec.name.as_str()))
    });
    found.map_err(|error| match error {
        CloudError::Ec2(error) if error.code().is_unknown_reference() => launch_template::not_found(reference).into(),
        other => other,
    })
}

pub fn internet_gateway(tx: &Transaction, reference: &str) -> Result<InternetGatewayRecord, CloudError> {
    one_of(tx.list()?, reference, |record: &InternetGatewayRecord| (record.meta.id, record.meta.name()))
}

pub fn route_table(tx: &Transaction, reference: &str) -> Result<RouteTableRecord, CloudError> {
    one_of(tx.list()?, reference, |record: &RouteTableRecord| (record.meta.id, record.meta.name()))
}

/// Finds an elastic address. `reference` may also be the IP address.
pub fn address(tx: &Transaction, reference: &str) -> Result<AddressRecord, CloudError> {
    let records: Vec<AddressRecord> = tx.list()?;
    if let Some(record) = records.iter().find(|record| record.status.public_ip.to_string() == reference) {
        return Ok(record.clone());
    }
    one_of(records, reference, |record: &AddressRecord| (record.meta.id, record.meta.name()))
}

fn one_of<R, K: ResourceKind>(
    records: Vec<R>,
    reference: &str,
    name_of: impl Fn(&R) -> (Id<K>, Option<&str>),
) -> Result<R, CloudError> {
    let id = find(reference, &records.iter().map(&name_of).collect::<Vec<_>>())?;
    Ok(records.into_iter().find(|record| name_of(record).0 == id).expect("the ID comes from these records"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ec2::{ErrorCode, InstanceId};

    fn id(text: &str) -> InstanceId {
        text.parse().unwrap()
    }

    #[test]
    fn name_or_id_prefix_finds_resource() {
        let (a, b) = (id("i-0a000000000000000"), id("i-0b000000000000000"));
        let known = [(a, Some("web")), (b, None)];
        let code = |reference| find(reference, &known).expect_err(reference).code();
        assert_eq!(find("web", &known), Ok(a));
        assert_eq!(find("i-0b", &known), Ok(b));
        assert_eq!(code("i-0"), ErrorCode::InvalidParameterValue);
        assert_eq!(code("db"), ErrorCode::InvalidInstanceIdNotFound);
        assert_eq!(code("i-123"), ErrorCode::InvalidInstanceIdMalformed);
        assert_eq!(code("i-0c000000000000000"), ErrorCode::InvalidInstanceIdNotFound);
    }

    #[test]
    fn name_that_looks_like_id_is_found() {
        let (a, b) = (id("i-0a000000000000000"), id("i-0b000000000000000"));
        let known = [(a, Some("i-am-a-name")), (b, Some("i-123"))];
        assert_eq!(find("i-am-a-name", &known), Ok(a));
        assert_eq!(find("i-123", &known), Ok(b));
        let known = [(a, None), (b, Some("i-0a000000000000000"))];
        assert_eq!(find("i-0a000000000000000", &known), Ok(a));
        let error = find("i-am-no-name", &known).expect_err("malformed");
        assert_eq!(error.code(), ErrorCode::InvalidInstanceIdMalformed);
    }

    #[test]
    fn duplicate_name_is_ambiguous() {
        let known = [(id("i-0a000000000000000"), Some("web")), (id("i-0b000000000000000"), Some("web"))];
        let error = find("web", &known).expect_err("ambiguous");
        assert_eq!(error.to_string(), "InvalidParameterValue: 'web' matches 2 instances.");
    }
}
