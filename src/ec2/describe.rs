//! Instance types in the format of EC2's `DescribeInstanceTypes` response. Fields without a value are omitted.

use serde::Serialize;

use super::instance_type::{EbsBandwidth, Gpu, InstanceStore, InstanceType, Network};

/// An instance type (`InstanceTypeInfo` in EC2's API).
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct InstanceTypeInfo {
    instance_type: &'static str,
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
    hibernation_supported: bool,
    burstable_performance_supported: bool,
}

impl From<&InstanceType> for InstanceTypeInfo {
    fn from(row: &InstanceType) -> Self {
        InstanceTypeInfo {
            instance_type: row.name,
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
            hibernation_supported: row.hibernation,
            burstable_performance_supported: row.credits.is_some(),
        }
    }
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
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct EbsInfo {
    ebs_optimized_support: &'static str,
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
            ebs_optimized_support: if ebs.is_some() { "default" } else { "unsupported" },
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
    ipv4_addresses_per_interface: u32,
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
            ipv4_addresses_per_interface: network.ipv4_per_interface,
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
                },
                "EbsInfo": {
                    "EbsOptimizedSupport": "default",
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
                    "Ipv4AddressesPerInterface": 30,
                    "NetworkCards": [{
                        "NetworkCardIndex": 0,
                        "NetworkPerformance": "Up to 10 Gigabit",
                        "MaximumNetworkInterfaces": 8,
                        "BaselineBandwidthInGbps": 5.0,
                        "PeakBandwidthInGbps": 10.0,
                    }],
                },
                "HibernationSupported": true,
                "BurstablePerformanceSupported": false,
            })
        );
    }

    #[test]
    fn missing_resources_are_omitted() {
        let burstable = described("t2.nano");
        assert_eq!(burstable["BurstablePerformanceSupported"], true);
        assert_eq!(burstable["EbsInfo"], json!({ "EbsOptimizedSupport": "unsupported" }));
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
