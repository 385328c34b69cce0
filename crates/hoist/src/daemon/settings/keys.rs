//! The table of all keys: what each may be, and what it changes.

use std::path::PathBuf;

use hoist_engine::registry::Cluster;
use toml::de::DeValue;

use super::{MetricsAt, Settings};
use crate::daemon::policy;

/// A key of the file.
pub struct Key {
    pub name: &'static str,
    /// What it may be.
    pub allowed: &'static str,
    /// What it is where the file does not say.
    pub default: &'static str,
    /// Whether a reload changes it.
    pub reloads: bool,
    pub help: &'static str,
    pub set: Set,
}

/// How a value is taken.
pub enum Set {
    /// None if it is not what is allowed.
    Value(fn(&mut Settings, &DeValue<'_>) -> Option<()>),
    /// The rules for images.
    Rules,
}

/// All of them, in the order of the documentation.
pub const KEYS: &[Key] = &[
    Key {
        name: "root",
        allowed: "an absolute path, as \"/var/lib/hoist\"",
        default: "that of --root",
        reloads: false,
        help: "Store of layers, indexes and mounts. The daemon's socket is in it, but for /var/lib/hoist: \
               there it is /run/hoist/hoist.sock.",
        set: Set::Value(|settings, value| put(&mut settings.root, absolute(value))),
    },
    Key {
        name: "log",
        allowed: crate::log::ALLOWED,
        default: "that of --log",
        reloads: true,
        help: "What to log to stderr.",
        set: Set::Value(|settings, value| {
            let filter = value.as_str()?;
            crate::log::parse(filter)?;
            put(&mut settings.log, Some(filter.to_owned()))
        }),
    },
    Key {
        name: "log_format",
        allowed: "\"text\" or \"json\"",
        default: "that of --log-format",
        reloads: false,
        help: "Form of the log; JSON is one object a line.",
        set: Set::Value(|settings, value| put(&mut settings.log_format, choice(value))),
    },
    Key {
        name: "trust_index",
        allowed: "\"registry\", \"local\" or \"none\"",
        default: "that of --trust-index",
        reloads: true,
        help: "Which layer indexes to trust at most: a client may ask for less trust, never for more.",
        set: Set::Value(|settings, value| put(&mut settings.trust_index, choice(value))),
    },
    Key {
        name: "platform",
        allowed: "OS/ARCH[/VARIANT], as \"linux/arm64\"",
        default: "that of --platform, else this machine's",
        reloads: true,
        help: "Platform to choose from a multi-arch image, where the client names none.",
        set: Set::Value(|settings, value| {
            put(&mut settings.platform, Some(Some(value.as_str()?.parse().ok()?)))
        }),
    },
    Key {
        name: "plain_http",
        allowed: "true or false",
        default: "that of --plain-http, else plain on loopback only",
        reloads: true,
        help: "Whether to talk plain HTTP to registries, where the client does not say.",
        set: Set::Value(|settings, value| put(&mut settings.plain_http, value.as_bool().map(Some))),
    },
    Key {
        name: "certs_dirs",
        allowed: "a list of absolute paths, as [\"/etc/containerd/certs.d\"]",
        default: "[\"/etc/containerd/certs.d\", \"/etc/docker/certs.d\"]",
        reloads: true,
        help: "Folders of containerd's hosts.toml files: mirrors, certificates, headers.",
        set: Set::Value(|settings, value| {
            let paths = value.as_array()?.iter().map(|path| absolute(path.get_ref()));
            put(&mut settings.certs_dirs, paths.collect::<Option<Vec<_>>>().filter(|dirs| !dirs.is_empty()))
        }),
    },
    Key {
        name: "read_timeout",
        allowed: "a time, as \"90s\" or \"2m\"",
        default: "that of --read-timeout",
        reloads: false,
        help: "How long a read may wait for absent data before it fails with EIO.",
        set: Set::Value(|settings, value| {
            put(&mut settings.read_timeout, crate::units::time(value.as_str()?).ok())
        }),
    },
    Key {
        name: "min_rate",
        allowed: "a size, as \"10K\"",
        default: "that of --min-rate",
        reloads: false,
        help: "Least that a registry must send in a second, over a minute of waiting, before it is given up.",
        set: Set::Value(|settings, value| {
            put(&mut settings.min_rate, crate::units::size(value.as_str()?).ok())
        }),
    },
    Key {
        name: "store_limit",
        allowed: "a size, as \"20G\"",
        default: "that of --store-limit",
        reloads: true,
        help: "Most that the store's layers may take on disk: those not used for longest are removed.",
        set: Set::Value(|settings, value| {
            put(&mut settings.store_limit, crate::units::size(value.as_str()?).ok().map(Some))
        }),
    },
    Key {
        name: "background",
        allowed: "\"off\", \"on\", or at most so many bytes a second, as \"20M\"",
        default: "that of --background",
        reloads: true,
        help: "Whether to fetch the rest of what is mounted too, while nobody waits for anything.",
        set: Set::Value(|settings, value| put(&mut settings.background, value.as_str()?.parse().ok())),
    },
    Key {
        name: "metrics",
        allowed: "\"ADDRESS:PORT\", as \"127.0.0.1:9464\", or \"unix:/PATH\"",
        default: "none are served",
        reloads: true,
        help: "Where to serve metrics for Prometheus, at /metrics (docs/METRICS.md). Nobody is asked for a \
               password there.",
        set: Set::Value(|settings, value| {
            let text = value.as_str()?;
            settings.metrics = Some(match text.strip_prefix("unix:") {
                Some(path) => MetricsAt::Unix(Some(path.into()).filter(|path: &PathBuf| path.is_absolute())?),
                None => MetricsAt::Tcp(text.parse().ok()?),
            });
            Some(())
        }),
    },
    Key {
        name: "restore",
        allowed: "true or false",
        default: "true",
        reloads: false,
        help: "Whether to make the mounts of `hoist mount` anew at the start, as after a reboot.",
        set: Set::Value(|settings, value| put(&mut settings.restore, value.as_bool())),
    },
    Key {
        name: "snapshotter_socket",
        allowed: "an absolute path, as \"/run/hoist/snapshotter.sock\"",
        default: "that of --snapshotter-socket, else containerd is not served",
        reloads: false,
        help: "Socket of containerd's snapshots service: what containerd's proxy plugin is given as address.",
        set: Set::Value(|settings, value| put(&mut settings.snapshotter_socket, absolute(value).map(Some))),
    },
    Key {
        name: "containerd_images",
        allowed: policy::MODES,
        default: "\"lazy\"",
        reloads: true,
        help: "What becomes of an image that containerd pulls by the snapshotter: \"lazy\" mounts it before its layers are \
               here if it can, and leaves it to containerd to unpack if not; \"full\" has the pull wait until \
               hoist has all of it, verified; \"auto\" is \"full\" for small ones, else \"lazy\".",
        set: Set::Value(|settings, value| put(&mut settings.containerd_images, choice(value))),
    },
    Key {
        name: "full_below",
        allowed: "a size, as \"100M\"",
        default: "\"32M\"",
        reloads: true,
        help: "For \"auto\": images whose layers take less than this in their registry are pulled whole.",
        set: Set::Value(|settings, value| {
            put(&mut settings.full_below, crate::units::size(value.as_str()?).ok())
        }),
    },
    Key {
        name: "images",
        allowed: "tables [[images]]",
        default: "none",
        reloads: true,
        help: "Rules for some of the images that containerd pulls: the first that fits counts instead of `containerd_images`.",
        set: Set::Rules,
    },
    Key {
        name: "containerd_socket",
        allowed: "an absolute path",
        default: "\"/run/containerd/containerd.sock\"",
        reloads: false,
        help: "Where containerd listens: what `cri_socket` passes on goes there.",
        set: Set::Value(|settings, value| put(&mut settings.containerd_socket, absolute(value))),
    },
    Key {
        name: "cri_socket",
        allowed: "an absolute path, as \"/run/hoist/cri.sock\"",
        default: "no such service",
        reloads: false,
        help: "Socket of a CRI image service for the kubelet's --image-service-endpoint. It is containerd's own; hoist learns \
               the credentials that the kubelet gives for each pull, and keeps them in memory alone, for what is read \
               later.",
        set: Set::Value(|settings, value| put(&mut settings.cri_socket, absolute(value).map(Some))),
    },
    Key {
        name: "credential_provider_config",
        allowed: "an absolute path",
        default: "no plugin is asked",
        reloads: true,
        help: "File of the kubelet's credential provider plugins (what its --image-credential-provider-config names): those \
               whose matchImages fit are asked for credentials.",
        set: Set::Value(|settings, value| {
            put(&mut settings.credential_provider_config, absolute(value).map(Some))
        }),
    },
    Key {
        name: "credential_provider_bin_dir",
        allowed: "an absolute path",
        default: "\"/usr/libexec/kubernetes/image-credential-provider\"",
        reloads: true,
        help: "Folder of these plugins' programs (the kubelet's --image-credential-provider-bin-dir).",
        set: Set::Value(|settings, value| put(&mut settings.credential_provider_bin_dir, absolute(value))),
    },
    Key {
        name: "pull_secrets",
        allowed: "\"pod\", or the absolute path of a kubeconfig file",
        default: "none are used",
        reloads: true,
        help: "Cluster whose secrets of type kubernetes.io/dockerconfigjson open registries: that of the pod hoist runs in, \
               or the kubeconfig's. Its account must be allowed to list secrets; all it may list are used for all \
               images, whatever their namespace.",
        set: Set::Value(|settings, value| {
            let cluster = match value.as_str()? {
                "pod" => Cluster::OfThePod,
                _ => Cluster::Kubeconfig(absolute(value)?),
            };
            put(&mut settings.pull_secrets, Some(Some(cluster)))
        }),
    },
];

fn put<T>(place: &mut T, value: Option<T>) -> Option<()> {
    *place = value?;
    Some(())
}

fn absolute(value: &DeValue<'_>) -> Option<PathBuf> {
    Some(PathBuf::from(value.as_str()?)).filter(|path| path.is_absolute())
}

/// One of these words.
pub fn choice<T: clap::ValueEnum>(value: &DeValue<'_>) -> Option<T> {
    T::from_str(value.as_str()?, false).ok()
}
