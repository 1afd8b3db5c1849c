//! The servers that others wrote, each on a port of its own.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tests::cloud::fault_lasts;
use tests::process::{PATIENCE, Process};

use crate::account::Record;
use crate::gateway::{Gateway, fastcgi, http};

pub struct Server {
    pub name: &'static str,
    pub address: SocketAddr,
    /// It reads methods in any case: `get` is GET to it.
    pub folds_methods: bool,
    process: Process,
    list: List,
}

/// Where the requests are that it counted.
enum List {
    File(PathBuf),
    Gateway(Gateway),
}

/// All of them. `folder`: for their files.
pub fn start(folder: &Path) -> Vec<Server> {
    vec![
        node("node", folder, "strict"),
        node("node --insecure-http-parser", folder, "lenient"),
        python("h11", folder),
        python("tornado", folder),
        python("gunicorn", folder),
        python("waitress", folder),
        gated("nginx", folder, nginx, Gateway::start(fastcgi)),
        // Its FastCGI never ends a body of no chunks.
        gated("haproxy", folder, haproxy, Gateway::start(http)),
        gated("lighttpd", folder, lighttpd, Gateway::start(fastcgi)),
        gated("apache", folder, apache, Gateway::start(fastcgi)),
    ]
}

impl Server {
    /// Ends it: the requests that it counted.
    pub fn stop(&mut self) -> Vec<Record> {
        self.process.signal(Signal::TERM);
        self.process.end(PATIENCE);
        match &self.list {
            List::Gateway(gateway) => gateway.take(),
            List::File(path) => {
                let text = fs::read_to_string(path).expect("it was made at the start");
                text.lines().filter_map(Record::parse).collect()
            }
        }
    }
}

fn node(name: &'static str, folder: &Path, parser: &'static str) -> Server {
    let mut command = Command::new("node");
    command.arg(script("servers.mjs")).arg(parser);
    listing(name, folder.join(parser), command)
}

/// Debian's own Python has the packages, whatever another in the path has.
fn python(name: &'static str, folder: &Path) -> Server {
    let mut command = Command::new("/usr/bin/python3");
    command.arg(script("servers.py")).arg(name);
    listing(name, folder.join(name), command)
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/differential")
        .join(name)
}

fn listing(name: &'static str, list: PathBuf, mut command: Command) -> Server {
    let process = Process::start(command.arg(&list));
    let port = process.line("its port", |line| line.strip_prefix("port ")?.parse::<u16>().ok());
    Server {
        name,
        address: ([127, 0, 0, 1], port).into(),
        folds_methods: name == "gunicorn",
        process,
        list: List::File(list),
    }
}

/// What a server's configuration says, and its command, given the folder for its files, its port and its gateway.
type Configure = fn(&Path, u16, SocketAddr) -> (String, Command);

fn gated(name: &'static str, folder: &Path, configure: Configure, gateway: Gateway) -> Server {
    let folder = folder.join(name);
    fs::create_dir(&folder).expect("a folder of its own");
    let address = {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        free.local_addr().expect("it is bound")
    };
    let (text, mut command) = configure(&folder, address.port(), gateway.address);
    fs::write(folder.join("conf"), text).expect("a file in the folder");
    let mut process = Process::start(&mut command);
    let started = Instant::now();
    // None of them tells when it listens.
    while TcpStream::connect(address).is_err() {
        assert!(process.is_running(), "{name} has ended: {}", process.stderr());
        assert!(started.elapsed() < PATIENCE, "{name} does not listen");
        fault_lasts(Duration::from_millis(20));
    }
    Server {
        name,
        address,
        folds_methods: false,
        process,
        list: List::Gateway(gateway),
    }
}

fn nginx(folder: &Path, port: u16, gateway: SocketAddr) -> (String, Command) {
    let mut command = Command::new("/usr/sbin/nginx");
    command
        .arg("-e")
        .arg(folder.join("log"))
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(folder.join("conf"));
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {name};\n"));
    let text = format!(
        "daemon off;
        master_process off;
        pid pid;
        events {{ worker_connections 1000; }}
        http {{
            {}
            access_log off;
            keepalive_timeout 300s;
            keepalive_requests 1000000000;
            upstream gateway {{ server {gateway}; keepalive 16; }}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    fastcgi_pass gateway;
                    fastcgi_keep_conn on;
                    fastcgi_param REQUEST_METHOD $request_method;
                    fastcgi_param REQUEST_URI $request_uri;
                    fastcgi_param CONTENT_LENGTH $content_length;
                }}
            }}
        }}",
        paths.concat()
    );
    (text, command)
}

fn haproxy(folder: &Path, port: u16, gateway: SocketAddr) -> (String, Command) {
    let mut command = Command::new("/usr/sbin/haproxy");
    command.arg("-f").arg(folder.join("conf"));
    let text = format!(
        "global
            nbthread 1
        defaults
            mode http
            timeout connect 10s
            timeout client 300s
            timeout server 300s
        frontend browsers
            bind 127.0.0.1:{port}
            default_backend gateway
        backend gateway
            server gateway {gateway}\n"
    );
    (text, command)
}

fn lighttpd(folder: &Path, port: u16, gateway: SocketAddr) -> (String, Command) {
    let mut command = Command::new("/usr/sbin/lighttpd");
    command.arg("-D").arg("-f").arg(folder.join("conf"));
    let text = format!(
        "server.modules = (\"mod_fastcgi\")
        server.bind = \"127.0.0.1\"
        server.port = {port}
        server.document-root = {folder:?}
        server.upload-dirs = ({folder:?})
        server.errorlog = \"{}/log\"
        server.max-keep-alive-idle = 300
        server.max-keep-alive-requests = 1000000
        fastcgi.server = (\"/\" => ((
            \"host\" => \"127.0.0.1\", \"port\" => {}, \"check-local\" => \"disable\"
        )))\n",
        folder.display(),
        gateway.port(),
    );
    (text, command)
}

fn apache(folder: &Path, port: u16, gateway: SocketAddr) -> (String, Command) {
    let mut command = Command::new("/usr/sbin/apache2");
    command
        .arg("-X")
        .arg("-d")
        .arg(folder)
        .arg("-f")
        .arg(folder.join("conf"));
    let modules = ["mpm_event", "authz_core", "proxy", "proxy_fcgi"]
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"));
    let text = format!(
        "{}
        ServerName localhost
        Listen 127.0.0.1:{port}
        PidFile pid
        DefaultRuntimeDir .
        ErrorLog log
        User www-data
        Group www-data
        ServerLimit 1
        StartServers 1
        ThreadsPerChild 16
        MaxRequestWorkers 16
        KeepAliveTimeout 300
        MaxKeepAliveRequests 0
        AllowEncodedSlashes NoDecode
        MergeSlashes Off
        ProxyPass / fcgi://{gateway}/ enablereuse=on nocanon\n",
        modules.concat()
    );
    (text, command)
}
