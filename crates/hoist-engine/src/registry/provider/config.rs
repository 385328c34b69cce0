//! The kubelet's `CredentialProviderConfig`: YAML or JSON.

use std::collections::HashSet;
use std::time::Duration;

use serde::Deserialize;

use crate::registry::pattern::Pattern;

/// Versions of the protocol between kubelet and plugin; they differ in the name alone.
const VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// A plugin.
pub(super) struct Provider {
    /// Of its program, too.
    pub name: String,
    pub match_images: Vec<Pattern>,
    /// How long an answer counts that does not say.
    pub default_life: Duration,
    pub version: String,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    kind: String,
    providers: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    api_version: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    token_attributes: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: String,
}

pub(super) fn parse(text: &str) -> Result<Vec<Provider>, String> {
    let file: File = serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location().map(|at| format!("line {}: ", at.line())).unwrap_or_default();
        format!("{place}it is no CredentialProviderConfig: {}", first_line(&error.to_string()))
    })?;
    if file.kind != "CredentialProviderConfig" {
        return Err(format!("its kind is {:?}; it must be CredentialProviderConfig", file.kind));
    }
    let mut names = HashSet::new();
    let mut all = Vec::new();
    for entry in file.providers {
        let name = entry.name.clone();
        if !names.insert(name.clone()) {
            return Err(format!("there are two providers {name}"));
        }
        // It would get the token of the pod's service account, which the kubelet alone has.
        if entry.token_attributes.is_some() {
            tracing::warn!(
                provider = name,
                "a credential provider that wants service accounts' tokens is not asked"
            );
            continue;
        }
        all.push(entry.check().map_err(|what| format!("provider {name}: {what}"))?);
    }
    Ok(all)
}

impl Entry {
    fn check(self) -> Result<Provider, String> {
        if self.name.is_empty() || self.name.contains(['/', ' ']) || matches!(self.name.as_str(), "." | "..")
        {
            return Err("its name is no file's".to_owned());
        }
        if self.match_images.is_empty() {
            return Err("matchImages is empty: it would never be asked".to_owned());
        }
        if !VERSIONS.contains(&self.api_version.as_str()) {
            return Err(format!(
                "apiVersion can't be {:?}; it is one of {}",
                self.api_version,
                VERSIONS.join(", ")
            ));
        }
        let life = self.default_cache_duration.ok_or("defaultCacheDuration is missing")?;
        let default_life = duration(&life)
            .ok_or_else(|| format!("defaultCacheDuration can't be {life:?}; it is a time, as \"12h\""))?;
        let environment = self.env.unwrap_or_default().into_iter();
        Ok(Provider {
            name: self.name,
            match_images: self.match_images.iter().map(|text| Pattern::parse(text)).collect(),
            default_life,
            version: self.api_version,
            arguments: self.args.unwrap_or_default(),
            environment: environment.map(|variable| (variable.name, variable.value)).collect(),
        })
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// A time as Go writes it, as "1h30m" or "0s" (`time.ParseDuration`); none that is negative.
pub(super) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut sum) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let unit =
            rest[number..].find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len() - number);
        let nanos = match &rest[number..number + unit] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        let value: f64 = rest[..number].parse().ok()?;
        sum = sum.checked_add(Duration::try_from_secs_f64(value * nanos / 1e9).ok()?)?;
        rest = &rest[number + unit..];
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_go_writes_them() {
        let seconds = |text| duration(text).map(|time| time.as_secs_f64());
        assert_eq!(seconds("12h0m0s"), Some(43_200.0));
        assert_eq!(seconds("1.5h30ms"), Some(5400.03));
        assert_eq!((seconds("0"), seconds("0s")), (Some(0.0), Some(0.0)));
        for wrong in ["", "12", "-1s", "h", "1x", "1h2", "99999999999999999999h", "1..5s"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }

    /// As in Kubernetes' task page, and the same as JSON.
    #[test]
    fn yaml_and_json() {
        let yaml = "\
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr-credential-provider
    matchImages:
      - \"*.dkr.ecr.*.amazonaws.com\"
      - registry.io:8080/path
    defaultCacheDuration: \"12h\"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args:
      - get-credentials
    env:
      - name: AWS_PROFILE
        value: example_profile
";
        let json = r#"{"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig", "providers": [
            {"name": "ecr-credential-provider", "matchImages": ["*.dkr.ecr.*.amazonaws.com", "registry.io:8080/path"],
             "defaultCacheDuration": "12h", "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
             "args": ["get-credentials"], "env": [{"name": "AWS_PROFILE", "value": "example_profile"}]}]}"#;
        for text in [yaml, json] {
            let all = parse(text).unwrap();
            let [one] = &all[..] else { panic!("{}", all.len()) };
            assert_eq!((one.name.as_str(), one.match_images.len()), ("ecr-credential-provider", 2));
            assert_eq!(one.default_life, Duration::from_secs(12 * 3600));
            assert_eq!(one.arguments, ["get-credentials"]);
            assert_eq!(one.environment, [("AWS_PROFILE".to_owned(), "example_profile".to_owned())]);
        }
        let changed = |from: &str, to: &str| parse(&yaml.replace(from, to)).err().unwrap_or_default();
        assert!(changed("kind: Cred", "kind: X").contains("it must be CredentialProviderConfig"));
        assert!(
            changed("\"12h\"", "\"soon\"").contains("provider ecr-credential-provider: defaultCacheDuration")
        );
        assert!(
            changed("k8s.io/v1\n    args", "k8s.io/v9\n    args").contains("it is one of credentialprovider")
        );
        assert!(changed("ecr-credential-provider", "../x").contains("is no file's"));
        assert!(changed("providers:", "provider:").contains("it is no CredentialProviderConfig"));
        assert!(
            changed("    args:", "    tokenAttributes: {requireServiceAccount: true}\n    args:").is_empty()
        );
    }
}
