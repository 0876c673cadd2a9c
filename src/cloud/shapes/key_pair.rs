use ec2::api::key_pair::KeyPairInfo;
use ec2::api::{Tag, Timestamp};
use store::KeyPairRecord;

pub fn key_pair(record: &KeyPairRecord) -> KeyPairInfo {
    KeyPairInfo {
        create_time: Timestamp::from_seconds(record.meta.created),
        key_fingerprint: record.status.fingerprint.clone(),
        key_name: record.spec.name.clone(),
        key_pair_id: record.meta.id,
        key_type: record.spec.key_type.clone(),
        tags: Tag::list(&record.meta.tags),
    }
}
