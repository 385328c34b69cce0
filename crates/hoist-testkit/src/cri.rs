//! A client of Kubernetes' Container Runtime Interface, as a kubelet is one. Pods are on the host's network.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio::runtime::Runtime;

use crate::grpc::Channel;
use crate::process;

#[allow(missing_docs, clippy::all, clippy::pedantic)]
mod api {
    include!("cri/runtime.v1.rs");
}

use api::image_service_client::ImageServiceClient;
use api::runtime_service_client::RuntimeServiceClient;
use api::*;

/// For a program in a container, seconds.
const PATIENCE: i64 = 120;

/// See the module.
#[derive(Debug)]
pub struct Cri {
    runtime: Runtime,
    containers: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// A pod.
#[derive(Debug, Clone)]
pub struct Pod {
    config: PodSandboxConfig,
    id: String,
}

/// What a program did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Cri {
    /// Connects, and waits until containerd knows what it runs.
    ///
    /// # Errors
    /// Nobody listens, or it does not come to that.
    pub fn connect(socket: &Path) -> Result<Cri> {
        Cri::connect_apart(socket, socket)
    }

    /// The same, with an image service of its own (the kubelet's --image-service-endpoint).
    ///
    /// # Errors
    /// Nobody listens.
    pub fn connect_apart(containers: &Path, images: &Path) -> Result<Cri> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let containers = runtime.block_on(Channel::connect(containers))?;
        let images = runtime.block_on(Channel::connect(images))?;
        let origin: tonic::codegen::http::Uri = "http://localhost".parse()?;
        let cri = Cri {
            containers: RuntimeServiceClient::with_origin(containers, origin.clone()),
            images: ImageServiceClient::with_origin(images, origin),
            runtime,
        };
        process::wait_until("containerd's CRI plugin", Duration::from_secs(30), || {
            // Of a pod that is not there nothing is stopped.
            let stop = StopPodSandboxRequest { pod_sandbox_id: "none".into() };
            match cri.runtime.block_on(cri.containers.clone().stop_pod_sandbox(stop)) {
                Err(status) if status.message().contains("not initialized") => Ok(false),
                // So says 1.6.
                Err(status) if status.code() == tonic::Code::NotFound => Ok(true),
                answer => Ok(answer.map(|_| true)?),
            }
        })?;
        Ok(cri)
    }

    /// Pulls an image.
    ///
    /// # Errors
    /// What containerd says.
    pub fn pull(&self, image: &str) -> Result<()> {
        self.pull_with(image, None)
    }

    /// Pulls an image as a user of its registry.
    ///
    /// # Errors
    /// What containerd says.
    pub fn pull_as(&self, image: &str, user: &str, password: &str) -> Result<()> {
        self.pull_with(image, Some(AuthConfig { username: user.into(), password: password.into() }))
    }

    fn pull_with(&self, image: &str, auth: Option<AuthConfig>) -> Result<()> {
        let request = PullImageRequest { image: spec(image), auth, sandbox_config: None };
        self.runtime.block_on(self.images.clone().pull_image(request))?;
        Ok(())
    }

    /// Removes an image.
    ///
    /// # Errors
    /// What containerd says.
    pub fn remove_image(&self, image: &str) -> Result<()> {
        let request = RemoveImageRequest { image: spec(image) };
        self.runtime.block_on(self.images.clone().remove_image(request))?;
        Ok(())
    }

    /// Makes a pod.
    ///
    /// # Errors
    /// What containerd says.
    pub fn run_pod(&self, name: &str) -> Result<Pod> {
        let host = NamespaceOption { network: NamespaceMode::Node.into() };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: name.into(),
                namespace: "default".into(),
            }),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext { namespace_options: Some(host) }),
            }),
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let id = self.runtime.block_on(self.containers.clone().run_pod_sandbox(request))?;
        Ok(Pod { config, id: id.into_inner().pod_sandbox_id })
    }

    /// Starts a container in a pod; its id.
    ///
    /// # Errors
    /// What containerd says.
    pub fn start(&self, pod: &Pod, name: &str, image: &str, command: &[&str]) -> Result<String> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into() }),
            image: spec(image),
            command: command.iter().map(|&word| word.into()).collect(),
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let mut containers = self.containers.clone();
        self.runtime.block_on(async {
            let container_id = containers.create_container(request).await?.into_inner().container_id;
            containers.start_container(StartContainerRequest { container_id: container_id.clone() }).await?;
            Ok(container_id)
        })
    }

    /// Runs a program in a container.
    ///
    /// # Errors
    /// What containerd says.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<Ran> {
        let request = ExecSyncRequest {
            container_id: container.into(),
            cmd: command.iter().map(|&word| word.into()).collect(),
            timeout: PATIENCE,
        };
        let ran = self.runtime.block_on(self.containers.clone().exec_sync(request))?.into_inner();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ran { code: ran.exit_code, stdout: text(ran.stdout), stderr: text(ran.stderr) })
    }

    /// Stops a container and removes it.
    ///
    /// # Errors
    /// What containerd says.
    pub fn remove(&self, container: &str) -> Result<()> {
        let mut containers = self.containers.clone();
        let container_id = container.to_owned();
        self.runtime.block_on(async {
            // Its program has no reason to be asked kindly.
            let stop = StopContainerRequest { container_id: container_id.clone(), timeout: 0 };
            containers.stop_container(stop).await?;
            containers.remove_container(RemoveContainerRequest { container_id }).await?;
            Ok(())
        })
    }

    /// Stops a pod and removes it.
    ///
    /// # Errors
    /// What containerd says.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        let mut containers = self.containers.clone();
        let pod_sandbox_id = pod.id.clone();
        self.runtime.block_on(async {
            containers
                .stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() })
                .await?;
            containers.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
            Ok(())
        })
    }
}

fn spec(image: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: image.into() })
}
