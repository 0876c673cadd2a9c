//! SMBIOS strings by which programs detect EC2 (Amazon EC2 User Guide, "Identify EC2 instances").

use super::InstanceId;

pub const MANUFACTURER: &str = "Amazon EC2";

/// Returns a UUID that consists of `ec2`, the digits of the instance ID, and zeros.
pub fn system_uuid(instance: InstanceId) -> [u8; 16] {
    let digits = instance.to_string();
    let own = digits.split_once('-').map_or("", |(_, own)| own);
    let text = format!("ec2{own:0<29}");
    u128::from_str_radix(&text, 16).unwrap_or_default().to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_uuid_starts_with_ec2_and_instance_id() {
        let uuid = system_uuid("i-0123456789abcdef1".parse().unwrap());
        assert_eq!(uuid, 0xec20_1234_5678_9abc_def1_0000_0000_0000_u128.to_be_bytes());
    }
}
