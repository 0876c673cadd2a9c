//! Security groups, without guests.

mod common;

use common::instances::json;
use common::{Outcome, Wisp};
use serde_json::{Value, json};

fn refused(outcome: Outcome, code: &str) {
    let outcome = outcome.expect_code(1);
    assert!(outcome.stderr.contains(code), "{}", outcome.stderr);
}

fn group(wisp: &Wisp, name: &str) -> Value {
    json(wisp, &["sg", "show", name])["SecurityGroups"][0].clone()
}

fn rules(wisp: &Wisp, name: &str) -> Vec<Value> {
    json(wisp, &["sg", "show", name])["SecurityGroupRules"].as_array().unwrap().clone()
}

#[test]
fn default_group_matches_ec2() {
    let wisp = Wisp::without_kvm();
    let groups = json(&wisp, &["sg", "ls"]);
    assert_eq!(groups["SecurityGroups"].as_array().unwrap().len(), 1);
    let default = group(&wisp, "default");
    assert_eq!(default["Description"], "default VPC security group");
    let own = json!([{"GroupId": default["GroupId"], "UserId": "000000000000"}]);
    let everywhere = json!([{"CidrIp": "0.0.0.0/0"}]);
    for (direction, ranges, groups) in
        [("IpPermissions", json!([]), own), ("IpPermissionsEgress", everywhere, json!([]))]
    {
        let permission = &default[direction][0];
        assert_eq!((&permission["IpProtocol"], &permission["FromPort"]), (&json!("-1"), &json!(null)));
        assert_eq!((&permission["IpRanges"], &permission["UserIdGroupPairs"]), (&ranges, &groups), "{direction}");
        assert_eq!((&permission["Ipv6Ranges"], &permission["PrefixListIds"]), (&json!([]), &json!([])));
    }
    refused(wisp.run(&["sg", "rm", "default"]), "CannotDelete");
    refused(wisp.run(&["sg", "create", "default"]), "InvalidGroup.Reserved");
}

#[test]
fn rules_are_authorized_and_revoked() {
    let wisp = Wisp::without_kvm();
    wisp.run(&["sg", "create", "web", "--description", "web servers"]).expect_code(0);
    refused(wisp.run(&["sg", "create", "web"]), "InvalidGroup.Duplicate");
    wisp.run(&["sg", "create", "backend"]).expect_code(0);
    wisp.run(&["sg", "authorize", "web", "--port", "80"]).expect_code(0);
    refused(wisp.run(&["sg", "authorize", "web", "--protocol", "tcp", "--port", "80"]), "InvalidPermission.Duplicate");
    wisp.run(&["sg", "authorize", "backend", "--port", "5432", "--description", "databases"]).expect_code(0);
    assert_eq!(group(&wisp, "backend")["IpPermissions"][0]["IpRanges"][0]["Description"], "databases");
    assert!(wisp.run(&["sg", "show", "backend"]).expect_code(0).text().contains("databases"));
    let both = ["sg", "authorize", "web", "--port", "8000-8100", "--cidr", "10.0.0.0/8", "--group", "backend"];
    wisp.run(&both).expect_code(0);
    let web = group(&wisp, "web");
    let permissions = web["IpPermissions"].as_array().unwrap();
    assert_eq!(permissions.len(), 2);
    assert_eq!((&permissions[1]["FromPort"], &permissions[1]["ToPort"]), (&json!(8000), &json!(8100)));
    assert_eq!(permissions[1]["UserIdGroupPairs"][0]["GroupId"], group(&wisp, "backend")["GroupId"]);
    refused(wisp.run(&["sg", "rm", "backend"]), "DependencyViolation");
    // If one of a command's rules does not exist, the command removes none of them.
    refused(
        wisp.run(&["sg", "revoke", "web", "--port", "8000-8100", "--cidr", "10.0.0.0/8", "--cidr", "10.1.0.0/16"]),
        "InvalidPermission.NotFound",
    );
    assert_eq!(group(&wisp, "web"), web);
    wisp.run(&["sg", "revoke", "web", "--port", "8000-8100", "--cidr", "10.0.0.0/8", "--group", "backend"])
        .expect_code(0);
    let id = rules(&wisp, "web")[1]["SecurityGroupRuleId"].as_str().unwrap().to_string();
    wisp.run(&["sg", "revoke", "web", "--rule", &id]).expect_code(0);
    assert_eq!(group(&wisp, "web")["IpPermissions"], json!([]));
    wisp.run(&["sg", "rm", "backend"]).expect_code(0);
    refused(wisp.run(&["sg", "show", "backend"]), "InvalidGroup.NotFound");
    assert!(wisp.run(&["sg", "ls"]).expect_code(0).text().contains("web servers"));
}

#[test]
fn malformed_rules_are_refused() {
    let wisp = Wisp::without_kvm();
    for words in [&["--port", "x"][..], &["--protocol", "sctp"], &["--protocol", "all", "--port", "80"]] {
        refused(wisp.run(&[&["sg", "authorize", "default"], words].concat()), "InvalidPermission.Malformed");
    }
    refused(wisp.run(&["sg", "authorize", "default"]), "MissingParameter");
    refused(wisp.run(&["sg", "authorize", "nobody", "--port", "80"]), "InvalidGroup.NotFound");
    let many: Vec<String> = (0..61).map(|number| format!("--cidr=10.0.0.{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    refused(
        wisp.run(&[&["sg", "authorize", "default", "--port", "80"], &many[..]].concat()),
        "RulesPerSecurityGroupLimitExceeded",
    );
    assert_eq!(rules(&wisp, "default").len(), 2);
}

#[test]
fn description_with_control_characters_is_escaped_in_text_and_json() {
    const HOSTILE: &str = "web\x1b]0;title\x07\u{9b}2J\x7f\u{202e}\nline";
    let is_shown_raw = |text: &str| text.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}');
    let wisp = Wisp::without_kvm();
    wisp.run(&["sg", "create", "odd", "--description", HOSTILE]).expect_code(0);
    for words in [&["sg", "ls"][..], &["sg", "show", "odd"]] {
        let text = wisp.run(words).expect_code(0).text();
        assert!(text.contains(r"web\x1b]0;title\x07\u{9b}2J\x7f\u{202e}\nline"), "{text:?}");
        assert!(!is_shown_raw(&text), "{text:?}");
        let text = wisp.run(&[words, &["--output", "json"]].concat()).expect_code(0).text();
        assert!(!is_shown_raw(&text), "{text:?}");
    }
    assert_eq!(group(&wisp, "odd")["Description"], HOSTILE);
    let refused = wisp.run(&["sg", "show", HOSTILE]).expect_code(1);
    assert!(!is_shown_raw(&refused.stderr), "{:?}", refused.stderr);
}
