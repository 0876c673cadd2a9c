use ec2::api::key_pair::KeyPairInfo;
use ec2::api::{Tag, Timestamp};
use store::KeyPairRecord;

pub fn key_pair(record: &KeyPairRecord) -> KeyPairInfo {
    KeyPairInfo {
        create_time: Timestamp::from_seconds(record.created),
        key_fingerprint: record.fingerprint.clone(),
        key_name: record.name.clone(),
        key_pair_id: record.id,
        key_type: record.key_type.clone(),
        tags: Tag::list(&record.tags),
    }
}
