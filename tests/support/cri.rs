//! A client of CRI (Kubernetes, `runtime.v1`), as a kubelet is one: what a test needs of it.

use prost::Message;
use std::path::Path;
use tonic::Status;

use peelfs::containerd::connection::Connection;

#[derive(Clone, PartialEq, Message)]
pub struct ImageSpec {
    #[prost(string, tag = "1")]
    pub image: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Auth {
    #[prost(string, tag = "1")]
    pub username: String,
    #[prost(string, tag = "2")]
    pub password: String,
    #[prost(string, tag = "3")]
    pub auth: String,
}

#[derive(Clone, PartialEq, Message)]
struct PullRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    auth: Option<Auth>,
}

/// A request or an answer that is one name: of an image, a sandbox, a container.
#[derive(Clone, PartialEq, Message)]
struct Name {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct ImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct Images {
    #[prost(message, repeated, tag = "1")]
    images: Vec<Image>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Image {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, repeated, tag = "2")]
    pub repo_tags: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

/// Of `NamespaceMode`, the host's.
const NODE: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct NamespaceOptions {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<NamespaceOptions>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxSandbox {
    #[prost(message, optional, tag = "2")]
    security: Option<SandboxSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct SandboxConfiguration {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    configuration: Option<SandboxConfiguration>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    namespaces: Option<NamespaceOptions>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainer {
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfiguration {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Name>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainer>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    configuration: Option<ContainerConfiguration>,
    #[prost(message, optional, tag = "3")]
    sandbox_configuration: Option<SandboxConfiguration>,
}

#[derive(Clone, PartialEq, Message)]
struct Exec {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Executed {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    code: i32,
}

/// A connection to one socket.
pub struct Client {
    runtime: tokio::runtime::Runtime,
    connection: Connection,
}

/// What there is to prove who one is.
pub fn password(user: &str, password: &str) -> Option<Auth> {
    Some(Auth { username: user.to_owned(), password: password.to_owned(), ..Auth::default() })
}

impl Client {
    pub fn connect(address: &Path) -> Client {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let connection = runtime.block_on(Connection::open(address, "k8s.io")).expect("a connection");
        Client { runtime, connection }
    }

    fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + Default + 'static,
        A: Message + Default + 'static,
    {
        self.runtime.block_on(self.connection.call(method, request)).map_err(|failed| failed.status)
    }

    /// Gives the image's ID.
    pub fn pull(&self, image: &str, auth: Option<Auth>) -> Result<String, Status> {
        let request = PullRequest { image: Some(ImageSpec { image: image.to_owned() }), auth };
        self.call("runtime.v1.ImageService/PullImage", request).map(|answer: Name| answer.name)
    }

    pub fn images(&self) -> Result<Vec<Image>, Status> {
        self.call("runtime.v1.ImageService/ListImages", ()).map(|answer: Images| answer.images)
    }

    pub fn remove_image(&self, image: &str) -> Result<(), Status> {
        let request = ImageRequest { image: Some(ImageSpec { image: image.to_owned() }) };
        self.call("runtime.v1.ImageService/RemoveImage", request)
    }

    /// A method that nobody has.
    pub fn call_what_is_not_there(&self, request_bytes: usize) -> Result<(), Status> {
        self.call("runtime.v1.ImageService/NoSuchMethod", Name { name: "x".repeat(request_bytes) })
    }

    /// A pod with one container of that image that does nothing, on the host's network. Gives the names of both.
    pub fn run_pod(&self, name: &str, image: &str) -> Result<(String, String), Status> {
        let metadata = Metadata { name: name.to_owned(), uid: name.to_owned(), namespace: "test".to_owned() };
        let namespaces = Some(NamespaceOptions { network: NODE });
        let linux = LinuxSandbox { security: Some(SandboxSecurity { namespaces: namespaces.clone() }) };
        let configuration = SandboxConfiguration { metadata: Some(metadata), linux: Some(linux) };
        let run = RunSandbox { configuration: Some(configuration.clone()) };
        let sandbox: Name = self.call("runtime.v1.RuntimeService/RunPodSandbox", run)?;
        let linux = LinuxContainer { security: Some(ContainerSecurity { namespaces }) };
        let create = CreateContainer {
            sandbox: sandbox.name.clone(),
            configuration: Some(ContainerConfiguration {
                metadata: Some(Name { name: "main".to_owned() }),
                image: Some(ImageSpec { image: image.to_owned() }),
                command: ["sleep", "600"].map(str::to_owned).to_vec(),
                linux: Some(linux),
            }),
            sandbox_configuration: Some(configuration),
        };
        let container: Name = self.call("runtime.v1.RuntimeService/CreateContainer", create)?;
        let start = Name { name: container.name.clone() };
        self.call::<_, ()>("runtime.v1.RuntimeService/StartContainer", start)?;
        Ok((sandbox.name, container.name))
    }

    /// What a command in a container writes, and how it ends.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<(String, i32), Status> {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let request = Exec { container: container.to_owned(), command, timeout: 120 };
        let done: Executed = self.call("runtime.v1.RuntimeService/ExecSync", request)?;
        let text = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
        Ok((text.into_owned(), done.code))
    }

    pub fn remove_pod(&self, sandbox: &str) -> Result<(), Status> {
        let named = || Name { name: sandbox.to_owned() };
        self.call::<_, ()>("runtime.v1.RuntimeService/StopPodSandbox", named())?;
        self.call("runtime.v1.RuntimeService/RemovePodSandbox", named())
    }
}
