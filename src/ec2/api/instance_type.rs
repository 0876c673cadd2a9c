//! Instance types. The figures are EC2's. Features that Wisp lacks are unsupported, whatever the type has in EC2.

use serde::Serialize;

use super::{BOOT_MODE, EmptyList, VIRTUALIZATION_TYPE};
use crate::instance_type::{EbsBandwidth, Gpu, InstanceStore, InstanceType, Network};

const UNSUPPORTED: &str = "unsupported";

/// EC2 API Reference, `InstanceTypeInfo`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceTypeInfo {
    instance_type: &'static str,
    current_generation: bool,
    free_tier_eligible: bool,
    supported_usage_classes: [&'static str; 1],
    supported_root_device_types: [&'static str; 1],
    supported_virtualization_types: [&'static str; 1],
    supported_boot_modes: [&'static str; 1],
    bare_metal: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    hypervisor: Option<&'static str>,
    processor_info: ProcessorInfo,
    #[serde(rename = "VCpuInfo")]
    vcpu_info: VcpuInfo,
    memory_info: MemoryInfo,
    instance_storage_supported: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance_storage_info: Option<InstanceStorageInfo>,
    ebs_info: EbsInfo,
    network_info: NetworkInfo,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu_info: Option<GpuInfo>,
    placement_group_info: PlacementGroupInfo,
    hibernation_supported: bool,
    burstable_performance_supported: bool,
    dedicated_hosts_supported: bool,
    auto_recovery_supported: bool,
    nitro_enclaves_support: &'static str,
    nitro_tpm_support: &'static str,
    phc_support: &'static str,
}

impl From<&InstanceType> for InstanceTypeInfo {
    fn from(row: &InstanceType) -> Self {
        InstanceTypeInfo {
            instance_type: row.name,
            // The catalog has no types of previous generations.
            current_generation: true,
            free_tier_eligible: row.is_in_free_tier(),
            supported_usage_classes: ["on-demand"],
            supported_root_device_types: ["ebs"],
            supported_virtualization_types: [VIRTUALIZATION_TYPE],
            supported_boot_modes: [BOOT_MODE],
            bare_metal: row.bare_metal,
            hypervisor: row.ec2_hypervisor(),
            processor_info: ProcessorInfo {
                supported_architectures: row.architectures.iter().map(|a| a.as_str()).collect(),
            },
            vcpu_info: VcpuInfo {
                default_vcpus: row.vcpus,
                default_cores: row.vcpus / row.threads_per_core,
                default_threads_per_core: row.threads_per_core,
            },
            memory_info: MemoryInfo { size_in_mib: row.memory_mib },
            instance_storage_supported: row.instance_store.is_some(),
            instance_storage_info: row.instance_store.map(InstanceStorageInfo::new),
            ebs_info: EbsInfo::new(row.ebs),
            network_info: NetworkInfo::new(row.network),
            gpu_info: row.gpu.map(GpuInfo::new),
            placement_group_info: PlacementGroupInfo { supported_strategies: [] },
            hibernation_supported: row.hibernation,
            burstable_performance_supported: row.credits.is_some(),
            dedicated_hosts_supported: false,
            auto_recovery_supported: false,
            nitro_enclaves_support: UNSUPPORTED,
            nitro_tpm_support: UNSUPPORTED,
            phc_support: UNSUPPORTED,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct PlacementGroupInfo {
    supported_strategies: EmptyList,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ProcessorInfo {
    supported_architectures: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct VcpuInfo {
    #[serde(rename = "DefaultVCpus")]
    default_vcpus: u32,
    default_cores: u32,
    default_threads_per_core: u32,
}

#[derive(Debug, Serialize)]
struct MemoryInfo {
    #[serde(rename = "SizeInMiB")]
    size_in_mib: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct InstanceStorageInfo {
    #[serde(rename = "TotalSizeInGB")]
    total_size_in_gb: u32,
    disks: [DiskInfo; 1],
    nvme_support: &'static str,
    encryption_support: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct DiskInfo {
    #[serde(rename = "SizeInGB")]
    size_in_gb: u32,
    count: u32,
    r#type: &'static str,
}

impl InstanceStorageInfo {
    fn new(store: InstanceStore) -> Self {
        InstanceStorageInfo {
            total_size_in_gb: store.total_gb(),
            disks: [DiskInfo { size_in_gb: store.disk_gb, count: store.disks, r#type: store.kind.as_str() }],
            nvme_support: UNSUPPORTED,
            encryption_support: UNSUPPORTED,
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct EbsInfo {
    ebs_optimized_support: &'static str,
    encryption_support: &'static str,
    nvme_support: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ebs_optimized_info: Option<EbsOptimizedInfo>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct EbsOptimizedInfo {
    baseline_bandwidth_in_mbps: u32,
    #[serde(rename = "BaselineThroughputInMBps")]
    baseline_throughput: f64,
    baseline_iops: u32,
    maximum_bandwidth_in_mbps: u32,
    #[serde(rename = "MaximumThroughputInMBps")]
    maximum_throughput: f64,
    maximum_iops: u32,
}

impl EbsInfo {
    fn new(ebs: Option<EbsBandwidth>) -> Self {
        EbsInfo {
            ebs_optimized_support: if ebs.is_some() { "default" } else { UNSUPPORTED },
            encryption_support: UNSUPPORTED,
            nvme_support: UNSUPPORTED,
            ebs_optimized_info: ebs.map(|ebs| EbsOptimizedInfo {
                baseline_bandwidth_in_mbps: ebs.baseline_mbps,
                baseline_throughput: f64::from(ebs.baseline_mbps) / 8.0,
                baseline_iops: ebs.baseline_iops,
                maximum_bandwidth_in_mbps: ebs.maximum_mbps,
                maximum_throughput: f64::from(ebs.maximum_mbps) / 8.0,
                maximum_iops: ebs.maximum_iops,
            }),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkInfo {
    network_performance: &'static str,
    maximum_network_interfaces: u32,
    maximum_network_cards: u32,
    default_network_card_index: u32,
    ipv4_addresses_per_interface: u32,
    ipv6_addresses_per_interface: u32,
    ipv6_supported: bool,
    ena_support: &'static str,
    efa_supported: bool,
    encryption_in_transit_supported: bool,
    network_cards: [NetworkCard; 1],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkCard {
    network_card_index: u32,
    network_performance: &'static str,
    maximum_network_interfaces: u32,
    baseline_bandwidth_in_gbps: f64,
    peak_bandwidth_in_gbps: f64,
}

impl NetworkInfo {
    fn new(network: Network) -> Self {
        NetworkInfo {
            network_performance: network.label,
            maximum_network_interfaces: network.max_interfaces,
            maximum_network_cards: 1,
            default_network_card_index: 0,
            ipv4_addresses_per_interface: network.ipv4_per_interface,
            ipv6_addresses_per_interface: 0,
            ipv6_supported: false,
            ena_support: UNSUPPORTED,
            efa_supported: false,
            encryption_in_transit_supported: false,
            network_cards: [NetworkCard {
                network_card_index: 0,
                network_performance: network.label,
                maximum_network_interfaces: network.max_interfaces,
                baseline_bandwidth_in_gbps: network.baseline_gbps,
                peak_bandwidth_in_gbps: network.peak_gbps,
            }],
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct GpuInfo {
    gpus: [GpuDeviceInfo; 1],
    #[serde(rename = "TotalGpuMemoryInMiB")]
    total_gpu_memory_in_mib: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct GpuDeviceInfo {
    name: &'static str,
    manufacturer: &'static str,
    count: u32,
    memory_info: MemoryInfo,
}

impl GpuInfo {
    fn new(gpu: Gpu) -> Self {
        GpuInfo {
            gpus: [GpuDeviceInfo {
                name: gpu.model,
                manufacturer: gpu.manufacturer,
                count: gpu.count,
                memory_info: MemoryInfo { size_in_mib: gpu.memory_mib },
            }],
            total_gpu_memory_in_mib: u64::from(gpu.count) * gpu.memory_mib,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog;
    use serde_json::{Value, json};

    fn described(name: &str) -> Value {
        let row = catalog::find(name).expect(name);
        serde_json::to_value(InstanceTypeInfo::from(row)).expect("plain data")
    }

    #[test]
    fn type_has_shape_of_describe_instance_types() {
        assert_eq!(
            described("i3.4xlarge"),
            json!({
                "InstanceType": "i3.4xlarge",
                "CurrentGeneration": true,
                "FreeTierEligible": false,
                "SupportedUsageClasses": ["on-demand"],
                "SupportedRootDeviceTypes": ["ebs"],
                "SupportedVirtualizationTypes": ["hvm"],
                "SupportedBootModes": ["legacy-bios"],
                "BareMetal": false,
                "Hypervisor": "xen",
                "ProcessorInfo": { "SupportedArchitectures": ["x86_64"] },
                "VCpuInfo": {
                    "DefaultVCpus": 16,
                    "DefaultCores": 8,
                    "DefaultThreadsPerCore": 2,
                },
                "MemoryInfo": { "SizeInMiB": 124_928 },
                "InstanceStorageSupported": true,
                "InstanceStorageInfo": {
                    "TotalSizeInGB": 3800,
                    "Disks": [{ "SizeInGB": 1900, "Count": 2, "Type": "ssd" }],
                    "NvmeSupport": "unsupported",
                    "EncryptionSupport": "unsupported",
                },
                "EbsInfo": {
                    "EbsOptimizedSupport": "default",
                    "EncryptionSupport": "unsupported",
                    "NvmeSupport": "unsupported",
                    "EbsOptimizedInfo": {
                        "BaselineBandwidthInMbps": 3500,
                        "BaselineThroughputInMBps": 437.5,
                        "BaselineIops": 16_000,
                        "MaximumBandwidthInMbps": 3500,
                        "MaximumThroughputInMBps": 437.5,
                        "MaximumIops": 16_000,
                    },
                },
                "NetworkInfo": {
                    "NetworkPerformance": "Up to 10 Gigabit",
                    "MaximumNetworkInterfaces": 8,
                    "MaximumNetworkCards": 1,
                    "DefaultNetworkCardIndex": 0,
                    "Ipv4AddressesPerInterface": 30,
                    "Ipv6AddressesPerInterface": 0,
                    "Ipv6Supported": false,
                    "EnaSupport": "unsupported",
                    "EfaSupported": false,
                    "EncryptionInTransitSupported": false,
                    "NetworkCards": [{
                        "NetworkCardIndex": 0,
                        "NetworkPerformance": "Up to 10 Gigabit",
                        "MaximumNetworkInterfaces": 8,
                        "BaselineBandwidthInGbps": 5.0,
                        "PeakBandwidthInGbps": 10.0,
                    }],
                },
                "PlacementGroupInfo": { "SupportedStrategies": [] },
                "HibernationSupported": true,
                "BurstablePerformanceSupported": false,
                "DedicatedHostsSupported": false,
                "AutoRecoverySupported": false,
                "NitroEnclavesSupport": "unsupported",
                "NitroTpmSupport": "unsupported",
                "PhcSupport": "unsupported",
            })
        );
    }

    #[test]
    fn missing_resources_are_omitted() {
        let burstable = described("t2.nano");
        assert_eq!(burstable["BurstablePerformanceSupported"], true);
        assert_eq!(burstable["EbsInfo"].get("EbsOptimizedInfo"), None);
        assert_eq!(described("t3.micro")["FreeTierEligible"], true);
        assert_eq!(burstable.get("InstanceStorageInfo"), None);
        assert_eq!(burstable.get("GpuInfo"), None);
        assert_eq!(described("c5.metal").get("Hypervisor"), None);
    }

    #[test]
    fn gpu_memory_is_summed() {
        let metal = described("g4dn.metal");
        assert_eq!(metal["GpuInfo"]["Gpus"][0]["Manufacturer"], "NVIDIA");
        assert_eq!(metal["GpuInfo"]["Gpus"][0]["Name"], "T4");
        assert_eq!(metal["GpuInfo"]["TotalGpuMemoryInMiB"], 131_072);
    }
}
