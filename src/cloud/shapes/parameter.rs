use ec2::api::parameter::Parameter;
use ec2::api::{ACCOUNT_ID, Timestamp};
use ec2::network::REGION;
use store::ImageAlias;

pub fn parameter(alias: &ImageAlias) -> Parameter {
    Parameter {
        arn: format!("arn:aws:ssm:{REGION}:{ACCOUNT_ID}:parameter{}", alias.path),
        data_type: "aws:ec2:image",
        last_modified_date: Timestamp::from_seconds(alias.modified),
        name: alias.path.clone(),
        parameter_type: "String",
        value: alias.image_id,
        version: alias.version,
    }
}
