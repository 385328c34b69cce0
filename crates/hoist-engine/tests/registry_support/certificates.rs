//! Certificates that openssl made.

use std::path::PathBuf;
use std::process::Command;

use hoist_engine::registry::Client;

use super::{Registry, config};

/// Certificates in a folder.
pub struct Certificates(tempfile::TempDir);

impl Certificates {
    /// A CA, and a server's certificate by it for `name` (`IP:...` or `DNS:...`).
    pub fn new(name: &str) -> Self {
        let made = Self(tempfile::tempdir().unwrap());
        made.authority("ca");
        made.signed("server", "ca", name);
        made
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn openssl(&self, line: &str) {
        let output = Command::new("openssl").current_dir(self.0.path()).args(line.split(' ')).output();
        let output = output.expect("openssl is needed: apt-get install openssl");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn authority(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} \
             -keyout {name}.key -out {name}.crt"
        ));
    }

    pub fn signed(&self, name: &str, by: &str, alternative: &str) {
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name} \
             -addext subjectAltName={alternative} -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA {by}.crt -CAkey {by}.key -CAcreateserial -copy_extensions copy \
             -days 2 -out {name}.crt"
        ));
    }

    /// A registry with the server's certificate, which wants certificates by the CA `clients`, if told.
    pub fn registry(&self, clients: Option<&str>) -> Registry {
        let at = self.0.path().display();
        let mut text = format!("  tls:\n    certificate: {at}/server.crt\n    key: {at}/server.key\n");
        if let Some(ca) = clients {
            text += &format!("    clientcas: [{at}/{ca}.crt]\n");
        }
        Registry::with(&text)
    }

    /// A client whose folder of settings holds `files` (name, content) for `host`.
    pub fn client(&self, host: &str, files: &[(&str, Vec<u8>)]) -> Client {
        let folder = self.path("certs.d").join(host);
        let _ = std::fs::remove_dir_all(self.path("certs.d"));
        std::fs::create_dir_all(&folder).unwrap();
        for (name, content) in files {
            std::fs::write(folder.join(name), content).unwrap();
        }
        let mut config = config();
        config.certs_dirs = vec![self.path("certs.d")];
        Client::new(config)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }
}
