//! Attributes of instances, which are read and changed one at a time: `DescribeInstanceAttribute` and others.

use serde::Deserialize;
use serde_json::{Value, json};

use super::Context;
use super::input::{Listing, check_dry_run};
use super::launch::MetadataOptions;
use super::resource::{AttributeBoolean, AttributeValue, Listed, combination, id, missing};
use crate::error::{ApiError, Code};
use cloud::modify::Modification;
use cloud::shapes;
use ec2::capacity::InstanceSize;
use ec2::id::{Instance, SecurityGroup};
use ec2::user_data::UserData;
use ec2::{Ec2Error, ErrorCode, catalog};
use store::InstanceRecord;

fn find(context: &Context, text: &str) -> Result<InstanceRecord, ApiError> {
    Ok(context.cloud.instances().find(&id::<Instance>(text)?.to_string())?)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DescribeInstanceAttribute {
    instance_id: String,
    attribute: String,
    #[serde(default)]
    dry_run: bool,
}

pub fn describe(context: &Context, input: DescribeInstanceAttribute) -> Result<Value, ApiError> {
    let record = find(context, &input.instance_id)?;
    check_dry_run(input.dry_run)?;
    let instance = super::respond(shapes::instance(&record, &context.cloud.security_groups().names()?))?;
    let value = |value: Value| json!({"Value": value});
    let (member, value) = match input.attribute.as_str() {
        "blockDeviceMapping" => ("BlockDeviceMappings", instance["BlockDeviceMappings"].clone()),
        "disableApiStop" => ("DisableApiStop", value(json!(false))),
        "disableApiTermination" => ("DisableApiTermination", value(json!(record.spec.termination_protection))),
        "ebsOptimized" => ("EbsOptimized", value(instance["EbsOptimized"].clone())),
        "enaSupport" => ("EnaSupport", value(instance["EnaSupport"].clone())),
        "enclaveOptions" => ("EnclaveOptions", instance["EnclaveOptions"].clone()),
        "groupSet" => ("Groups", instance["SecurityGroups"].clone()),
        "instanceInitiatedShutdownBehavior" => {
            ("InstanceInitiatedShutdownBehavior", value(json!(record.spec.shutdown_behavior.as_str())))
        }
        "instanceType" => ("InstanceType", value(json!(record.spec.size.instance_type))),
        "kernel" => ("KernelId", json!({})),
        "productCodes" => ("ProductCodes", json!([])),
        "ramdisk" => ("RamdiskId", json!({})),
        "rootDeviceName" => ("RootDeviceName", value(instance["RootDeviceName"].clone())),
        "sourceDestCheck" => ("SourceDestCheck", value(json!(true))),
        "sriovNetSupport" => ("SriovNetSupport", json!({})),
        "userData" => ("UserData", record.spec.user_data.as_ref().map_or(json!({}), |data| value(json!(data)))),
        other => return Err(Ec2Error::invalid_parameter("Attribute", other, "it is unknown.").into()),
    };
    Ok(json!({"InstanceId": record.meta.id, member: value}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ModifyInstanceAttribute {
    instance_id: String,
    /// An attribute may be named here, with its new value in `value`.
    attribute: Option<String>,
    value: Option<String>,
    disable_api_termination: Option<AttributeBoolean>,
    groups: Vec<String>,
    instance_initiated_shutdown_behavior: Option<AttributeValue>,
    instance_type: Option<AttributeValue>,
    user_data: Option<AttributeValue>,
    dry_run: bool,
}

impl ModifyInstanceAttribute {
    /// Moves a value that is given with the attribute's name to the attribute's own member.
    fn named(mut self) -> Result<Self, ApiError> {
        let Some(attribute) = self.attribute.take() else {
            return match self.value {
                Some(_) => Err(missing("Attribute")),
                None => Ok(self),
            };
        };
        let value = self.value.take();
        if value.is_none() && attribute != "userData" {
            return Err(missing("Value"));
        }
        match (attribute.as_str(), value) {
            ("disableApiTermination", Some(text)) => {
                let value = text
                    .parse()
                    .map_err(|_| Ec2Error::invalid_parameter("Value", &text, "it must be true or false."))?;
                self.disable_api_termination = Some(AttributeBoolean { value: Some(value) });
            }
            ("instanceInitiatedShutdownBehavior", value) => {
                self.instance_initiated_shutdown_behavior = Some(AttributeValue { value });
            }
            ("instanceType", value) => self.instance_type = Some(AttributeValue { value }),
            ("userData", value) => self.user_data = Some(AttributeValue { value }),
            (other, _) => {
                let what = format!("Wisp does not support changes of the attribute {other}.");
                return Err(ApiError::new(Code::Ec2(ErrorCode::UnsupportedOperation), what));
            }
        }
        Ok(self)
    }

    fn modification(&self) -> Result<Modification, ApiError> {
        let text = |given: &Option<AttributeValue>| given.as_ref().and_then(|given| given.value.clone());
        let instance_type = text(&self.instance_type).map(|name| catalog::find(&name)).transpose()?;
        let user_data = match &self.user_data {
            Some(given) => {
                let data = given.value.as_deref().map(UserData::from_base64).transpose()?;
                Some(data.filter(|data| !data.is_empty()).map(|data| data.to_base64()))
            }
            None => None,
        };
        let groups: Result<Vec<String>, Ec2Error> =
            self.groups.iter().map(|text| Ok(id::<SecurityGroup>(text)?.to_string())).collect();
        let behavior = text(&self.instance_initiated_shutdown_behavior).map(|text| text.parse()).transpose()?;
        Ok(Modification {
            size: instance_type.map(|instance_type| (InstanceSize::of_type(instance_type), false)),
            user_data,
            shutdown_behavior: behavior,
            termination_protection: self.disable_api_termination.as_ref().and_then(|given| given.value),
            security_groups: groups?,
            cpu_credits: None,
            metadata_options: None,
        })
    }
}

pub fn modify(context: &Context, input: ModifyInstanceAttribute) -> Result<Value, ApiError> {
    let record = find(context, &input.instance_id)?;
    let input = input.named()?;
    let change = input.modification()?;
    check_dry_run(input.dry_run)?;
    // A request whose values all state the default changes nothing.
    if !change.is_empty() {
        super::report(context.cloud.instances().modify(record.meta.id, &change)?);
    }
    Ok(Value::Null)
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct ModifyInstanceMetadataOptions {
    instance_id: String,
    http_tokens: Option<String>,
    http_endpoint: Option<String>,
    http_put_response_hop_limit: Option<u32>,
    instance_metadata_tags: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

pub fn modify_metadata(context: &Context, input: ModifyInstanceMetadataOptions) -> Result<Value, ApiError> {
    let record = find(context, &input.instance_id)?;
    let options = MetadataOptions {
        http_tokens: input.http_tokens,
        http_endpoint: input.http_endpoint,
        http_put_response_hop_limit: input.http_put_response_hop_limit,
        instance_metadata_tags: input.instance_metadata_tags,
    };
    let change = options.change()?.ok_or_else(|| combination("The request contains no option to change."))?;
    check_dry_run(input.dry_run)?;
    let change = Modification { metadata_options: Some(change), ..Modification::default() };
    let record = super::report(context.cloud.instances().modify(record.meta.id, &change)?);
    let instance = super::respond(shapes::instance(&record, &context.cloud.security_groups().names()?))?;
    Ok(json!({"InstanceId": record.meta.id, "InstanceMetadataOptions": instance["MetadataOptions"]}))
}

const CREDITS: Listed =
    Listed { list: "InstanceCreditSpecifications", id: "InstanceId", filters: &[("instance-id", "InstanceId")] };

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct DescribeCredits {
    instance_ids: Vec<String>,
}

pub fn credits(context: &Context, input: DescribeCredits, listing: Listing) -> Result<Value, ApiError> {
    let records = context.cloud.instances().list()?;
    let specifications =
        shapes::credit_specifications(&records).iter().map(super::respond).collect::<Result<_, _>>()?;
    CREDITS.respond::<Instance>(specifications, &input.instance_ids, listing)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ModifyCredits {
    #[serde(rename = "ClientToken")]
    _client_token: Option<String>,
    instance_credit_specifications: Vec<CreditChange>,
    dry_run: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CreditChange {
    instance_id: String,
    cpu_credits: String,
}

/// Changes the credit modes of instances. As in EC2, one that fails does not prevent the others.
pub fn modify_credits(context: &Context, input: ModifyCredits) -> Result<Value, ApiError> {
    check_dry_run(input.dry_run)?;
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for given in &input.instance_credit_specifications {
        let change = || -> Result<(), ApiError> {
            let record = find(context, &given.instance_id)?;
            let change = Modification { cpu_credits: Some(given.cpu_credits.parse()?), ..Modification::default() };
            super::report(context.cloud.instances().modify(record.meta.id, &change)?);
            Ok(())
        };
        match change() {
            Ok(()) => done.push(json!({"InstanceId": given.instance_id})),
            Err(error) => failed.push(json!({
                "InstanceId": given.instance_id,
                "Error": {"Code": error.code.as_str(), "Message": error.message},
            })),
        }
    }
    Ok(json!({
        "SuccessfulInstanceCreditSpecifications": done,
        "UnsuccessfulInstanceCreditSpecifications": failed,
    }))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UnmonitorInstances {
    instance_ids: Vec<String>,
    dry_run: bool,
}

/// Answers that detailed monitoring is disabled, which it always is.
pub fn unmonitor(context: &Context, input: UnmonitorInstances) -> Result<Value, ApiError> {
    let records: Result<Vec<_>, _> = input.instance_ids.iter().map(|text| find(context, text)).collect();
    let records = records?;
    check_dry_run(input.dry_run)?;
    let state = |record: &InstanceRecord| json!({"InstanceId": record.meta.id, "Monitoring": {"State": "disabled"}});
    Ok(json!({"InstanceMonitorings": records.iter().map(state).collect::<Vec<_>>()}))
}
