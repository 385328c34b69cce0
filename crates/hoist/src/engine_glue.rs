//! Where the command line meets the engine: its settings, its errors, its image configuration.

use std::error::Error as StdError;
use std::ffi::OsString;

use hoist_engine::{Background, Config, Engine, Image, Owners, Platform, Successor, Trust};

use crate::bundle::process::ImageProcess;
use crate::cli::{BackgroundFetch, Driver, Global, TrustIndex};
use crate::failure::user;
use crate::rootless::Root;

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
    open_as(global, Root::Given)
}

/// The same for this kind of root.
pub fn open_as(global: &Global, root: Root) -> anyhow::Result<Engine> {
    open_with(global, |config| {
        if root == Root::Alone {
            config.owners = Owners::Root;
        }
    })
}

/// The engine's word for an option.
pub fn trust(index: TrustIndex) -> Trust {
    match index {
        TrustIndex::Registry => Trust::Registry,
        TrustIndex::Local => Trust::Local,
        TrustIndex::None => Trust::None,
    }
}

/// The same for `--driver`.
pub fn driver(driver: Driver) -> hoist_engine::Driver {
    match driver {
        Driver::Erofs => hoist_engine::Driver::Erofs,
        Driver::ErofsFuse => hoist_engine::Driver::ErofsFuse,
        Driver::Fuse => hoist_engine::Driver::Fuse,
    }
}

/// The same for `--background`.
pub fn background(fetch: BackgroundFetch) -> Option<Background> {
    match fetch {
        BackgroundFetch::Off => None,
        BackgroundFetch::On => Some(Background::DEFAULT),
        BackgroundFetch::AtMost(rate) => {
            Some(Background { bytes_per_second: Some(rate), ..Background::DEFAULT })
        }
    }
}

/// A value of `--platform`.
pub fn parse_platform(text: &str) -> anyhow::Result<Platform> {
    text.parse().map_err(|error| user(format!("--platform: {error}")))
}

/// The platform asked for.
pub fn platform(global: &Global) -> anyhow::Result<Option<Platform>> {
    global.platform.as_deref().map(parse_platform).transpose()
}

/// The same for who mends or lets go, though the store's `version` is damaged.
pub fn open_damaged(global: &Global) -> anyhow::Result<Engine> {
    Ok(Engine::open_damaged(config(global)?)?)
}

/// The same, changed.
pub fn open_with(global: &Global, change: impl FnOnce(&mut Config)) -> anyhow::Result<Engine> {
    let mut config = config(global)?;
    change(&mut config);
    Ok(Engine::open(config)?)
}

fn config(global: &Global) -> anyhow::Result<Config> {
    let mut config = Config::new(global.root()?);
    config.trust = trust(global.trust_index);
    config.driver = global.driver.map(driver);
    if let Some(platform) = platform(global)? {
        config.platform = platform;
        config.platform_asked = true;
    }
    (config.read_timeout, config.store_limit) = (global.read_timeout, global.store_limit);
    (config.plain_http, config.min_rate) = (global.plain_http, global.min_rate);
    config.background = background(global.background);
    config.successor = Some(Successor { program: std::env::current_exe()?, arguments: successor(global)? });
    Ok(config)
}

/// The global options, spelt out for another process of this program.
pub fn arguments(global: &Global) -> anyhow::Result<Vec<OsString>> {
    spelt_out(global, |_| true)
}

/// The same, without what is left to its default.
pub fn given_arguments(global: &Global) -> anyhow::Result<Vec<OsString>> {
    spelt_out(global, |name| global.given.contains(name))
}

fn spelt_out(global: &Global, wanted: impl Fn(&str) -> bool) -> anyhow::Result<Vec<OsString>> {
    let trust = match global.trust_index {
        TrustIndex::Registry => "registry",
        TrustIndex::Local => "local",
        TrustIndex::None => "none",
    };
    let root = std::path::absolute(global.root()?)?;
    let mut arguments: Vec<OsString> = vec!["--root".into(), root.into()];
    let driver = global.driver.as_ref().and_then(clap::ValueEnum::to_possible_value);
    let values = [
        ("trust_index", Some(trust.to_owned())),
        ("background", Some(global.background.to_string())),
        ("driver", driver.map(|driver| driver.get_name().to_owned())),
        ("platform", global.platform.clone()),
        ("read_timeout", Some(format!("{}ms", global.read_timeout.as_millis()))),
        ("min_rate", Some(global.min_rate.to_string())),
        ("store_limit", global.store_limit.map(|limit| limit.to_string())),
        ("plain_http", global.plain_http.map(|plain| plain.to_string())),
        ("log", Some(global.log.clone())),
    ];
    for (name, value) in values {
        if let Some(value) = value.filter(|_| wanted(name)) {
            arguments.push(format!("--{}={value}", name.replace('_', "-")).into());
        }
    }
    if global.no_daemon {
        arguments.push("--no-daemon".into());
    }
    Ok(arguments)
}

fn successor(global: &Global) -> anyhow::Result<Vec<OsString>> {
    let mut arguments = arguments(global)?;
    arguments.push("serve".into());
    Ok(arguments)
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
        stop_signal: config.stop_signal,
    }
}

/// The threads the engine works on.
pub fn tokio_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}
