//! Whom a verb talks to, and as who: servers and certificates, from flags, the environment, or a context file that holds both.
//!
//! ```toml
//! servers = ["10.0.0.11:9443", "10.0.0.12:9443"]
//! ca = "ca.pem"                        # relative to this file
//! certificate = "operator-ml-alice.pem"
//! key = "operator-ml-alice.key"
//! ```
//! A flag beats its environment variable, which beats the context file.

use crate::args::{ClientArgs, KeyArgs};
use crate::config::check_address;
use crate::document::{Document, Problems, Reader};
use crate::exit::Failure;
use muster_net::tls::{KeyFiles, Tls};
use std::path::Path;

/// Where a replica is looked for if nothing says otherwise.
const HERE: &str = "127.0.0.1:9443";

/// A context file, read.
#[derive(Debug, Default, PartialEq, Eq)]
struct Context {
    servers: Vec<String>,
    keys: Option<KeyFiles>,
}

fn parse(file: &str, text: &str, dir: &Path) -> Result<Context, Problems> {
    let document = Document::new(file, text);
    let table = document.parse();
    let mut root = Reader::root(&document, &table);
    let mut servers = Vec::new();
    for value in root.array("servers", "\"host:port\"") {
        match value.get_ref().as_str().map(|text| check_address(text, 9443)) {
            Some(Ok(server)) => servers.push(server),
            Some(Err(problem)) => document.problem(value.span(), format!("servers: {problem}")),
            None => {
                let found = crate::document::kind(value.get_ref());
                document.problem(value.span(), format!("servers holds {found}: expected \"host:port\""));
            }
        }
    }
    let keys = read_keys(&document, &mut root, dir);
    root.finish();
    document.finish(Context { servers, keys })
}

/// The three files of a table, all or none of them. Relative ones are beside `dir`.
pub(crate) fn read_keys(document: &Document<'_>, table: &mut Reader<'_, '_, '_>, dir: &Path) -> Option<KeyFiles> {
    let mut missing = Vec::new();
    let mut file = |key| {
        let file = table.text(key).map(|(text, _)| dir.join(text));
        if file.is_none() {
            missing.push(table.name(key));
        }
        file
    };
    let files = [file("ca"), file("certificate"), file("key")];
    match files {
        [Some(ca), Some(certificate), Some(key)] => Some(KeyFiles { ca, certificate, key }),
        [None, None, None] => None,
        _ => {
            let missing = missing.join(" and ");
            document.problem(table.span(), format!("{missing} is missing: ca, certificate and key go together"));
            None
        }
    }
}

fn read(path: &Path) -> Result<Context, Failure> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::error(
            format!("{file} cannot be read: {error}"),
            "name a context file with --context FILE or MUSTER_CONTEXT, or unset it",
        )
    })?;
    let dir = path.parent().unwrap_or_else(|| Path::new(""));
    parse(&file, &text, dir).map_err(|problems| Failure::from(vec![problems]))
}

/// The keys that the command line and the environment give, and what the context file says besides.
fn resolve(args: &KeyArgs) -> Result<Context, Failure> {
    let context = match &args.context {
        Some(path) if !path.as_os_str().is_empty() => read(path)?,
        Some(_) | None => Context::default(),
    };
    let from = context.keys.as_ref();
    let pick = |flag: &Option<std::path::PathBuf>, file: Option<&std::path::PathBuf>| flag.clone().or(file.cloned());
    let keys = [
        pick(&args.tls_ca, from.map(|keys| &keys.ca)),
        pick(&args.tls_cert, from.map(|keys| &keys.certificate)),
        pick(&args.tls_key, from.map(|keys| &keys.key)),
    ];
    let keys = match keys {
        [Some(ca), Some(certificate), Some(key)] => Some(KeyFiles { ca, certificate, key }),
        [None, None, None] => None,
        _ => {
            return Err(Failure::usage(
                "certificates are given in part",
                "give all of --tls-ca, --tls-cert and --tls-key, or a context file that names them",
            ));
        }
    };
    Ok(Context { keys, ..context })
}

/// The keys to speak TLS with; none without TLS.
pub(crate) fn keys(args: &KeyArgs) -> Result<Option<Tls>, Failure> {
    Ok(resolve(args)?.keys.map(Tls::load).transpose()?)
}

/// Whom to ask, and as who.
pub(crate) fn target(args: &ClientArgs) -> Result<(Vec<String>, Option<Tls>), Failure> {
    let context = resolve(&args.keys)?;
    let mut servers = args.servers.clone();
    if servers.is_empty() {
        servers = context.servers;
    }
    if servers.is_empty() {
        servers.push(HERE.to_owned());
    }
    Ok((servers, context.keys.map(Tls::load).transpose()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_context_lie_beside_it() {
        let text = "servers = [\"a\", \"b:7\"]\nca = \"ca.pem\"\ncertificate = \"/abs/me.pem\"\nkey = \"me.key\"\n";
        let context = parse("c.toml", text, Path::new("/home/me")).unwrap();
        assert_eq!(context.servers, ["a:9443", "b:7"]);
        let keys = context.keys.unwrap();
        assert_eq!(keys.ca, Path::new("/home/me/ca.pem"));
        assert_eq!(keys.certificate, Path::new("/abs/me.pem"));
    }

    #[test]
    fn certificates_in_part_are_a_problem_that_names_what_is_missing() {
        let problems = parse("c.toml", "ca = \"ca.pem\"\nserver = \"a\"\n", Path::new("")).unwrap_err().to_string();
        assert!(problems.contains("certificate and key is missing"), "{problems}");
        assert!(problems.contains("did you mean \"servers\""), "{problems}");
    }
}
