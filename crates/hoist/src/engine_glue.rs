//! Where the command line meets the engine: its settings, its errors, its image configuration.

use std::error::Error as StdError;

use hoist_engine::{Config, Engine, Image, Trust};

use crate::bundle::process::ImageProcess;
use crate::cli::{Global, TrustIndex};
use crate::failure::user;

/// `None` if the error is not the engine's.
fn is_user_failure(error: &(dyn StdError + 'static)) -> Option<bool> {
    error.downcast_ref::<hoist_engine::Error>().map(hoist_engine::Error::is_user_failure)
}

/// The exit code an error calls for, the engine's own errors included.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    crate::failure::exit_code(error, is_user_failure)
}

/// Opens the store the options name.
pub fn open(global: &Global) -> anyhow::Result<Engine> {
    let mut config = Config::new(global.root()?);
    config.trust = match global.trust_index {
        TrustIndex::Registry => Trust::Registry,
        TrustIndex::Local => Trust::Local,
        TrustIndex::None => Trust::None,
    };
    if let Some(platform) = &global.platform {
        config.platform = platform.parse().map_err(|error| user(format!("--platform: {error}")))?;
    }
    config.plain_http = global.plain_http;
    Ok(Engine::open(config)?)
}

/// How the image says it is run.
pub fn process_of(image: &Image) -> ImageProcess {
    let config = image.config.config.clone().unwrap_or_default();
    ImageProcess {
        entrypoint: config.entrypoint.unwrap_or_default(),
        cmd: config.cmd.unwrap_or_default(),
        env: config.env.unwrap_or_default(),
        working_dir: config.working_dir,
        user: config.user,
    }
}

/// The threads the engine works on.
pub fn tokio_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
