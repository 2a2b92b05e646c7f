//! A cluster for tests: the double of the API server, and a double of the daemon on each node, which serves recorded answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::sync::Arc;

use api_server_double::ApiServer;
use serde_json::{Value, json};
use status_view::status::Status;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

/// The namespace of the daemons.
pub const NAMESPACE: &str = "probe-handler-system";
/// The port of the daemons' admin servers.
pub const PORT: u16 = 15026;
const TOKEN: &str = "token-of-the-user";

/// The permissions of the plugin's users, and all that it has here.
const ROLE: &str = include_str!("../../../deploy/components/plugin/role.yaml");

/// The state of a real daemon, as it was recorded.
pub const STATUS: &str = include_str!("../recorded/status.json");

/// Path -> status and body of an answer.
pub type Answers = BTreeMap<String, (u16, Vec<u8>)>;

/// The cluster; ends when dropped.
pub struct Cluster {
    /// The API server.
    pub server: ApiServer,
    files: TempDir,
}

impl Cluster {
    /// A cluster without nodes.
    pub async fn start() -> Self {
        let role: Value = serde_yaml_ng::from_str(ROLE).expect("the Role");
        Self::with_permissions(role["rules"].as_array().expect("rules")).await
    }

    /// The same, with other permissions than those of the Role.
    pub async fn with_permissions(rules: &[Value]) -> Self {
        let (server, certificate) = ApiServer::start_tls().await;
        server.require_token(Some(TOKEN));
        server.allow(Some(NAMESPACE), rules);
        let files = tempfile::tempdir().expect("a directory");
        let authority = files.path().join("ca.pem");
        std::fs::write(&authority, certificate.pem()).expect("the certificate");
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {
                "server": server.url().to_string().trim_end_matches('/'), "certificate-authority": authority,
            }}],
            "users": [{"name": "me", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "me"}}],
        });
        std::fs::write(files.path().join("kubeconfig"), kubeconfig.to_string())
            .expect("kubeconfig");
        Self { server, files }
    }

    /// A cluster whose nodes serve the recorded state, each with its own pods.
    pub async fn of_nodes(count: usize) -> Self {
        let cluster = Self::start().await;
        for index in 0..count {
            let node = node(index);
            cluster.node(&node, status(&recorded(&node))).await;
        }
        cluster
    }

    /// Adds a node whose daemon serves `answers`.
    pub async fn node(&self, node: &str, answers: Answers) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        drop(tokio::spawn(serve(listener, Arc::new(answers))));
        self.node_at(node, Some(address));
    }

    /// Adds a node whose daemon accepts connections, and answers none of them.
    pub async fn hanging_node(&self, node: &str) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        self.node_at(node, Some(listener.local_addr().expect("an address")));
        drop(tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok(connection) = listener.accept().await {
                held.push(connection);
            }
        }));
    }

    /// Adds a node where something answers each connection with these bytes.
    pub async fn node_with(&self, node: &str, bytes: &'static [u8]) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        self.node_at(node, Some(listener.local_addr().expect("an address")));
        drop(tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                // The client ends connections as it likes.
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(bytes).await;
            }
        }));
    }

    /// Adds a node whose daemon's port is at `address`, or refuses connections.
    pub fn node_at(&self, node: &str, address: Option<SocketAddr>) {
        let pod = format!("probe-handler-{node}");
        self.server.put("pods", daemon(&pod, node));
        if let Some(address) = address {
            self.server.forward(NAMESPACE, &pod, PORT, address);
        }
    }

    /// Runs the plugin with the cluster's kubeconfig.
    pub async fn probes(&self, args: &[&str]) -> Output {
        self.command(args).output().await.expect("the plugin")
    }

    /// The same, as a command that is not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = plugin(args);
        command.env("KUBECONFIG", self.files.path().join("kubeconfig"));
        command
    }
}

/// The plugin without a kubeconfig.
pub fn plugin(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-probes"));
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("COLUMNS").env("HOME", "/nonexistent");
    command.env_remove("KUBERNETES_SERVICE_HOST");
    command
}

/// What it wrote to standard output.
pub fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What it wrote to standard error.
pub fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The name of a node.
pub fn node(index: usize) -> String {
    format!("worker-{index:02}")
}

/// The recorded state, with names of pods that end with the node's.
pub fn recorded(node: &str) -> Status {
    let mut status: Status = serde_json::from_str(STATUS).expect("a state");
    for pod in &mut status.pods {
        pod.name = format!("{}-{node}", pod.name);
    }
    for pod in &mut status.not_served {
        pod.name = format!("{}-{node}", pod.name);
    }
    for pod in &mut status.observed {
        pod.name = format!("{}-{node}", pod.name);
    }
    status.version = support::build::VERSION.to_owned();
    status
}

/// The answers of a daemon with this state.
pub fn status(status: &Status) -> Answers {
    let body = serde_json::to_vec(status).expect("JSON");
    BTreeMap::from([("/status".to_owned(), (200, body))])
}

fn daemon(pod: &str, node: &str) -> Value {
    json!({
        "metadata": {"namespace": NAMESPACE, "name": pod, "labels": {"app.kubernetes.io/name": "probe-handler"}},
        "spec": {"nodeName": node, "hostNetwork": true, "containers": [
            {"name": "agent", "args": ["agent", "--pods=kube"]},
        ]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

async fn serve(listener: TcpListener, answers: Arc<Answers>) {
    while let Ok((stream, _)) = listener.accept().await {
        let answers = Arc::clone(&answers);
        drop(tokio::spawn(async move {
            // The client ends connections as it likes.
            let _ = answer(stream, &answers).await;
        }));
    }
}

/// One answer, after which the connection ends, as in the daemon.
async fn answer(mut stream: TcpStream, answers: &Answers) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default();
    let unknown = (404, b"not found\n".to_vec());
    let (status, body) = answers.get(path).unwrap_or(&unknown);
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body).await?;
    stream.shutdown().await
}
