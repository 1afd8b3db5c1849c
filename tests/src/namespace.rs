//! Network namespaces for one test, without root: the test runs itself again in a fresh user and network namespace
//! (the *world* of the cloud and the browser), and there makes a second one, which only what the test puts there enters.

use std::env;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use rustix::process::geteuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::Process;

/// Address of the world on its only link, and of the inner namespace.
pub const WORLD: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
pub const INNER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

const MARK: &str = "CULVERT_TEST_WORLD";

/// True inside the world. Outside it runs the test `name` (its path within the suite) there, and panics if it fails.
pub fn in_world(name: &str) -> bool {
    if env::var_os(MARK).is_some() {
        run("ip", &["link", "set", "lo", "up"]);
        return true;
    }
    let own = env::current_exe().expect("a path of this test");
    let mut command = Command::new("unshare");
    // Chromium wants a process table of its own namespace; --kill-child ends everything with the test.
    command.args([
        "--user",
        if geteuid().is_root() {
            "--map-root-user"
        } else {
            "--map-current-user"
        },
        "--keep-caps",
    ]);
    command
        .args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(own);
    command
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(MARK, "1")
        .stdin(Stdio::null());
    let output = command.output().expect("unshare runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "in its own namespaces:\n{text}");
    assert!(text.contains("1 passed"), "the test {name} did not run:\n{text}");
    println!("{text}");
    false
}

/// The namespace that holds the site: a holder process, and a link to the world.
pub struct Inner {
    holder: Process,
}

impl Inner {
    /// Made in the world only.
    pub fn enclose() -> Self {
        let holder = Process::start(Command::new("unshare").args([
            "--net",
            "--kill-child",
            "--fork",
            "--",
            "sh",
            "-c",
            "ip link set lo up && echo inside && exec sleep 600",
        ]));
        holder.line("the namespace", |line| (line == "inside").then_some(()));
        let inner = Self { holder };
        let id = inner.id();
        run(
            "ip",
            &[
                "link", "add", "world", "type", "veth", "peer", "name", "inner", "netns", &id,
            ],
        );
        // An IPv6 address of its own would become valid a second or two later, and Chromium ends what it is loading then.
        run("ip", &["link", "set", "world", "addrgenmode", "none"]);
        run("ip", &["address", "add", &format!("{WORLD}/24"), "dev", "world"]);
        run("ip", &["link", "set", "world", "up"]);
        for arguments in [
            &["address", "add", &format!("{INNER}/24"), "dev", "inner"][..],
            &["link", "set", "inner", "up"],
        ] {
            inner.run("ip", arguments);
        }
        inner
    }

    /// Gives the inside a further address, which the world reaches over their link.
    pub fn add_address(&self, address: Ipv4Addr) {
        let own = format!("{address}/32");
        self.run("ip", &["address", "add", &own, "dev", "inner"]);
        run("ip", &["route", "add", &own, "via", &INNER.to_string()]);
    }

    /// From now on the link to the world loses so many of a thousand packets, of each direction.
    pub fn lose(&self, per_mille: u32) {
        // At its receiver: TCP would learn at once of a packet that is dropped where it leaves.
        let chain = |device| {
            format!(
                "table inet path\ndelete table inet path\ntable inet path {{ chain lossy {{ \
                 type filter hook input priority 0; \
                 iifname \"{device}\" numgen random mod 1000 < {per_mille} drop; }}; }}\n"
            )
        };
        run("nft", &[&chain("world")]);
        self.run("nft", &[&chain("inner")]);
    }

    /// Packets of both directions are no larger than those of a wire: the kernel joins what one sender has ready, and a loss
    /// would take it all.
    pub fn split_packets(&self) {
        let single = |device| ["link", "set", device, "gso_max_segs", "1"];
        run("ip", &single("world"));
        self.run("ip", &single("inner"));
    }

    /// As [`run`], inside.
    fn run(&self, program: &str, arguments: &[&str]) {
        let status = self.command(program).args(arguments).status().expect("nsenter runs");
        assert!(status.success(), "inside: {program} {arguments:?}");
    }

    /// The process inside: the child of `unshare --fork`.
    fn id(&self) -> String {
        let parent = self.holder.id();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).expect("procfs");
        children.trim().to_owned()
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.id(), "--net", "--"]).arg(program);
        command
    }

    /// Runs `work` on a thread inside: the sockets that it opens stay there, whoever uses them.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let space = File::open(format!("/proc/{}/ns/net", self.id())).expect("procfs");
        let inside = || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).expect("a namespace of ours");
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join()).expect("what runs inside says what is wrong")
    }

    /// The same command, as it stands, but inside.
    pub fn enter(&self, command: &Command) -> Command {
        let mut inside = self.command(command.get_program());
        inside.args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }
}

/// In the world only: these names, and no others, are found without a name server.
pub fn name_hosts(folder: &Path, hosts: &[(&str, &str)]) {
    let lines: Vec<String> = hosts
        .iter()
        .map(|(address, name)| format!("{address} {name}\n"))
        .collect();
    let file = folder.join("hosts");
    fs::write(&file, lines.concat()).expect("a folder of this test");
    run("mount", &["--bind", &file.to_string_lossy(), "/etc/hosts"]);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().expect("it is installed");
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
