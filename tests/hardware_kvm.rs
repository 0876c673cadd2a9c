//! Wisp on hardware KVM: QEMU emulates a host with AMD-V. The host and one guest run Debian's cloud kernel.
//! The test needs the network and qemu-system-x86.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::Wisp;
use mkext4::reader::Fs;

const TIMEOUT_SECONDS: &str = "900";
/// Modules in dependency order.
const KVM: [&str; 3] = ["irqbypass", "kvm", "kvm-amd"];
const VIRTIO: [&str; 4] = ["virtio_ring", "virtio", "virtio_mmio", "virtio_blk"];
/// The script of the emulated host. `say` prints a line that the test looks for.
const HOST: &str = r#"
export PATH=/bin HOME=/root WISP_HOME=/root/wisp WISP_WARM_LIMIT=0
say() { echo "SAY $1: $(cat | tr '\n' ' ')"; }
wisp doctor 2>&1 | grep -a AMD-V | say doctor
wisp run --vcpus 2 -- sh -c 'nproc; grep -c -w svm /proc/cpuinfo; cat > /run/v; chmod +x /run/v; /run/v' < /root/vectors | say guest
echo hello-from-the-disk > /root/disk; truncate -s 16M /root/disk
wisp run --kernel /root/vmlinuz --initrd /root/initrd --disk /root/disk --vcpus 2 --memory 512M --cmdline quiet --console \
    --timeout 300 2>&1 | grep -a 'DEBIAN\|has stopped' | say debian
wisp launch --name web --memory 192M --vcpus 1 --overcommit > /dev/null
wisp volume create 16M --name data > /dev/null
wisp volume attach data web > /dev/null
wisp exec web -- sh -c 'cat /sys/block/vdb/size; echo kept > /root/file' | say volume
wisp reboot web > /dev/null
wisp stop web > /dev/null
wisp start web > /dev/null
wisp exec web -- cat /root/file | say started
wisp terminate web | say terminated
wisp launch --name sleeper --hibernation --memory 192M --vcpus 2 --overcommit > /dev/null
wisp exec sleeper -- sh -c 'cat /proc/sys/kernel/random/boot_id > /tmp/id; echo > /tmp/count
    (while :; do echo >> /tmp/count; sleep 1; done) > /dev/null 2>&1 &' < /dev/null | say began
wisp stop sleeper --hibernate > /dev/null
wisp start sleeper > /dev/null
IS_SAME='cmp /proc/sys/kernel/random/boot_id /tmp/id && c=$(wc -c < /tmp/count); while [ $(wc -c < /tmp/count) = $c ]; do sleep 1; done
    echo counts on'
wisp exec sleeper -- sh -c "$IS_SAME" | say hibernated
FORK=$(wisp fork sleeper --overcommit 2> /dev/null)
wisp exec $FORK -- sh -c "$IS_SAME; hostname" | say forked
wisp terminate sleeper $FORK > /dev/null
export WISP_WARM_LIMIT=512
wisp image warm tiny --memory 192M --vcpus 1 > /dev/null
wisp run --memory 192M --vcpus 1 -- hostname | say warm
wisp timeline | grep -a "agent resumed" | say timeline
wisp run -- sh -c 'echo c > /proc/sysrq-trigger' 2>&1 | grep -a panicked | say panic
"#;
const GUEST: &str = r#"
echo "DEBIAN $(cut -d' ' -f3 /proc/version) $(grep -c ^processor /proc/cpuinfo) $(head -c 19 /dev/vda)"
poweroff -f
"#;

struct RamDisk {
    dir: tempfile::TempDir,
}

impl RamDisk {
    fn new(busybox: &[u8], modules: &Path, names: &[&str], script: &str) -> RamDisk {
        let disk = RamDisk { dir: tempfile::tempdir().unwrap() };
        for dir in ["bin", "dev", "lib64", "modules", "proc", "root", "run", "sys", "tmp"] {
            fs::create_dir(disk.path(dir)).unwrap();
        }
        disk.program("bin/busybox", busybox);
        let applets = "sh mount mkdir insmod poweroff cat tr grep cut head truncate";
        applets.split(' ').for_each(|applet| symlink("busybox", disk.path(&format!("bin/{applet}"))).unwrap());
        let mut init = String::from(
            "#!/bin/sh\nmount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
             mkdir /dev/pts /dev/shm; mount -t devpts pts /dev/pts\n",
        );
        for name in names {
            fs::copy(find_module(modules, name), disk.path(&format!("modules/{name}.ko"))).unwrap();
            init.push_str(&format!("insmod /modules/{name}.ko\n"));
        }
        disk.program("init", format!("{init}{script}\npoweroff -f\n").as_bytes());
        disk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn copy_with_libraries(&self, program: &Path, name: &str) {
        let stripped = run(Command::new("strip").arg("-o").arg(self.path(name)).arg(program));
        assert_eq!(stripped, "");
        for word in run(Command::new("ldd").arg(program)).split_whitespace().filter(|word| word.starts_with('/')) {
            let path = self.path(word.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::copy(word, path).unwrap();
        }
    }

    fn pack(&self, into: &Path) {
        let command = "find . | cpio --create --format newc --quiet --file \"$0\"";
        run(Command::new("sh").args(["-c", command]).arg(into).current_dir(self.dir.path()));
    }
}

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let output = output.unwrap_or_else(|error| panic!("{command:?} (scripts/test installs what is needed): {error}"));
    let output = output.wait_with_output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn find_module(dir: &Path, name: &str) -> PathBuf {
    let found = run(Command::new("find").arg(dir).args(["-name", &format!("{name}.ko")]));
    PathBuf::from(found.lines().next().unwrap_or_else(|| panic!("Debian's kernel has no module {name}")))
}

#[test]
fn guests_run_on_hardware_kvm_as_on_software_kvm() {
    let wisp = Wisp::without_kvm();
    let embedded = Fs::open(File::open(wisp.bundle().join("root.ext4")).unwrap()).unwrap();
    let busybox = embedded.read_file(embedded.resolve("/bin/busybox").unwrap()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/debian-kernel");
    run(Command::new(script).arg(dir.path()));
    let (kernel, modules) = (dir.path().join("vmlinuz"), dir.path().join("modules"));

    let host = RamDisk::new(&busybox, &modules, &KVM, HOST);
    host.copy_with_libraries(Path::new(env!("CARGO_BIN_EXE_wisp")), "bin/wisp");
    fs::write(host.path("root/vectors"), common::program("vectors")).unwrap();
    fs::copy(&kernel, host.path("root/vmlinuz")).unwrap();
    RamDisk::new(&busybox, &modules, &VIRTIO, GUEST).pack(&host.path("root/initrd"));
    let image = dir.path().join("host.cpio");
    host.pack(&image);

    let options = "-accel tcg,thread=multi -cpu max -smp 2 -m 3G -nographic -nodefaults -serial stdio -no-reboot";
    let mut qemu = Command::new("timeout");
    qemu.args([TIMEOUT_SECONDS, "qemu-system-x86_64"]).args(options.split(' '));
    qemu.arg("-kernel").arg(&kernel).arg("-initrd").arg(&image).args(["-append", "console=ttyS0 quiet panic=-1"]);
    let printed = run(&mut qemu);
    let said = |what: &str| {
        let start = format!("SAY {what}: ");
        let line = printed.lines().find_map(|line| line.split_once(&start)).unwrap_or_else(|| panic!("{printed}"));
        line.1.trim().to_string()
    };
    assert!(said("doctor").contains("hardware (AMD-V)"), "{printed}");
    // The guest has two vCPUs, and neither of them has SVM (nested virtualization).
    assert!(said("guest").starts_with("2 0 ") && said("guest").ends_with(": 0 lost"), "{printed}");
    assert_eq!(said("hibernated"), "counts on", "{printed}");
    assert!(said("forked").starts_with("counts on i-"), "{printed}");
    assert!(said("warm").starts_with("i-") && said("timeline").contains("ms"), "{printed}");
    let debian = said("debian");
    assert!(debian.contains("cloud-amd64 2 hello-from-the-disk"), "{printed}");
    assert!(debian.contains("the guest powered off"), "by ACPI: {printed}");
    assert_eq!(said("volume"), "32768", "{printed}");
    assert_eq!(said("started"), "kept", "{printed}");
    assert!(said("terminated").contains("shutting-down"), "{printed}");
    assert!(said("panic").contains("the guest kernel panicked"), "{printed}");
}
