//! A registry that wants a login: the proxy asks for tokens of a service of its own (distribution's token
//! specification), whatever the registry behind it does. Tokens expire when the test says so.

use super::Shared;
use super::message::Head;

const SERVICE: &str = "/_token";

/// Who may come in.
#[derive(Debug, Default)]
pub(super) struct Login {
    /// The header of the one user.
    pub(super) basic: String,
    /// Tokens are numbered; those up to here have expired.
    issued: u64,
    expired: u64,
}

impl Login {
    pub(super) fn expire(&mut self) {
        self.expired = self.issued;
    }

    fn takes(&self, token: &str) -> bool {
        let number = token.strip_prefix("Bearer t").and_then(|number| number.parse::<u64>().ok());
        number.is_some_and(|number| number > self.expired && number <= self.issued)
    }
}

/// The answer to a request that is not passed on.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: String,
}

/// None of one that is.
pub(super) fn answer(shared: &Shared, request: &Head) -> Option<Answer> {
    let bare = |status| Some(Answer { status, headers: Vec::new(), body: String::new() });
    let mut state = shared.state();
    let login = state.login.as_mut()?;
    let shown = request.get("authorization").unwrap_or_default();
    let path = request.word(1);
    if path.starts_with(SERVICE) {
        // As services that know no OAuth2.
        if request.word(0) != "GET" {
            return bare(404);
        }
        if shown != login.basic {
            return bare(401);
        }
        login.issued += 1;
        let body = format!("{{\"token\": \"t{}\", \"expires_in\": 3600}}", login.issued);
        return Some(Answer { status: 200, headers: Vec::new(), body });
    }
    if login.takes(shown) {
        return None;
    }
    let host = request.get("host").unwrap_or_default();
    let repo = path.strip_prefix("/v2/").unwrap_or_default();
    let repo = ["/manifests/", "/blobs/", "/referrers/"].iter().find_map(|part| repo.split_once(part));
    let scope = repo.map(|(name, _)| format!(",scope=\"repository:{name}:pull\"")).unwrap_or_default();
    let challenge = format!("Bearer realm=\"http://{host}{SERVICE}\",service=\"testkit\"{scope}");
    let headers = vec![("www-authenticate".to_owned(), challenge)];
    Some(Answer { status: 401, headers, body: String::new() })
}
