//! x
use std::os::fd::FromRawFd;
fn main() {
    env_logger::init();
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    let config: wisp::vmm::MachineConfig = serde_json::from_str(&std::fs::read_to_string(dir.join("config.json")).unwrap()).unwrap();
    let _ = std::fs::remove_file(dir.join("control.sock"));
    let _ = std::fs::remove_file(dir.join("v.sock"));
    let (near, far) = std::os::unix::net::UnixStream::pair().unwrap();
    std::thread::spawn(move || { let mut n = near; let mut o = std::io::stdout(); std::io::copy(&mut n, &mut o) });
    let m = wisp::vmm::Machine::new(config, wisp::vmm::machine::Surroundings { folder: dir, owner: None, console: Some(far), process_start_ns: None }).unwrap();
    println!("{:?}", m.run());
}
