//! Who knows the daemon credentials, beside the files that every command reads: what a kubelet has given, its plugins,
//! and a cluster's pull secrets.

use std::fs::File;
use std::sync::Arc;

use anyhow::Context;
use hoist_engine::reference::Source;
use hoist_engine::registry::{CredentialSource, Login, Providers, PullSecrets, Remembered};
use hoist_snapshotter::{Auth, Keychain};

use super::settings::Settings;
use crate::failure::user;

/// Those that the settings name, in the order in which they are asked.
///
/// # Errors
/// What is named can't be used: the user's to mend.
pub fn sources(
    settings: &Settings,
    given: Option<&Arc<Remembered>>,
) -> anyhow::Result<Vec<Arc<dyn CredentialSource>>> {
    let mut sources: Vec<Arc<dyn CredentialSource>> = Vec::new();
    sources.extend(given.map(|given| Arc::clone(given) as Arc<dyn CredentialSource>));
    if let Some(file) = &settings.credential_provider_config {
        let providers = Providers::read(file, &settings.credential_provider_bin_dir);
        sources
            .push(Arc::new(providers.map_err(|what| user(format!("credential_provider_config: {what}")))?));
    }
    if let Some(cluster) = &settings.pull_secrets {
        let secrets = PullSecrets::of(cluster);
        sources.push(Arc::new(secrets.map_err(|what| user(format!("pull_secrets: {what}")))?));
    }
    Ok(sources)
}

/// A file that is nowhere but in memory: for what a successor is to know, and no disk.
///
/// # Errors
/// The kernel has none to give.
pub fn memory() -> anyhow::Result<Arc<File>> {
    let made = rustix::fs::memfd_create(c"hoist-given", rustix::fs::MemfdFlags::CLOEXEC);
    Ok(Arc::new(File::from(made.context("making a file in memory")?)))
}

/// What the CRI image service learns.
pub struct Given(pub Arc<Remembered>);

impl Keychain for Given {
    fn given(&self, image: &str, auth: Auth) {
        let Ok(Source::Registry(reference)) = image.parse() else { return };
        let login = Login {
            auth: Some(auth.auth),
            username: Some(auth.username),
            password: Some(auth.password),
            identitytoken: Some(auth.identity_token),
            registrytoken: Some(auth.registry_token),
            serveraddress: Some(auth.server_address),
        };
        match self.0.keep(&reference, &login) {
            Ok(()) => tracing::debug!(image, "a pull came with credentials"),
            Err(what) => tracing::warn!(image, "the credentials that came with a pull are not used: {what}"),
        }
    }
}
