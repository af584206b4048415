//! Credentials: asked for, sent where they belong, renewed, and never shown.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use peelfs_registry::{
    Asked, Client, ClientConfiguration, Credential, CredentialSource, ErrorKind, Timeouts,
};
use serde_json::{Value, json};

use super::{chain, client_with, content};
use crate::support::registry::{Authentication, FakeRegistry, Fault};

/// A client with this credential file, which lives as long as the directory given back.
fn client_with_file(file: &Value) -> (Client, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    std::fs::write(&path, file.to_string()).unwrap();
    let configuration =
        ClientConfiguration { credential_files: vec![path], ..ClientConfiguration::default() };
    (client_with(configuration), directory)
}

fn token(login: Option<&str>, uses: usize) -> Authentication {
    Authentication::Token { login: login.map(str::to_owned), identity_token: None, uses, realm: None }
}

#[tokio::test]
async fn each_way_to_log_in_works() {
    let login = |host: &str| json!({ "auths": { host: { "username": "user", "password": "pass:word" } } });
    let identity = |host: &str| json!({ "auths": { host: { "identitytoken": "refresh-me" } } });
    let nobody = |_: &str| json!({});
    type File = fn(&str) -> Value;
    let cases: [(Authentication, File); 4] = [
        (Authentication::Basic("user:pass:word".to_owned()), login),
        (token(Some("user:pass:word"), 100), login),
        (token(None, 100), nobody),
        (
            Authentication::Token {
                login: None,
                identity_token: Some("refresh-me".to_owned()),
                uses: 100,
                realm: None,
            },
            identity,
        ),
    ];
    for (authentication, file) in cases {
        let registry = FakeRegistry::start();
        registry.put_image("name", "tag", &[]);
        registry.require(authentication.clone());
        let (client, _directory) = client_with_file(&file(&registry.url_host()));
        let reference = registry.reference("name", "tag");
        let repository = client.repository(&reference).unwrap();
        for _ in 0..3 {
            repository.manifest(&reference.target()).await.unwrap();
        }
        let counters = registry.counters();
        assert_eq!(counters.manifests, 4, "{authentication:?}: asked once, then known");
        assert!(counters.tokens <= 1, "{authentication:?}: one token is enough");

        let (stranger, _directory) = client_with_file(&json!({ "auths": {} }));
        let result = stranger.repository(&reference).unwrap().manifest(&reference.target()).await;
        // The token service gives tokens to anybody where no login is set.
        let expected = match authentication {
            Authentication::Token { login: None, .. } => None,
            _ => Some(ErrorKind::Unauthorized),
        };
        assert_eq!(
            result.as_ref().err().map(|error| error.kind()),
            expected,
            "{authentication:?}: {result:?}"
        );
    }
}

/// Somebody who knows several passwords.
#[derive(Debug)]
struct Knows(&'static [&'static str]);

impl CredentialSource for Knows {
    fn credentials(
        &self,
        asked: &Asked,
    ) -> Result<Vec<Credential>, Box<dyn std::error::Error + Send + Sync>> {
        assert_eq!((asked.registry.as_str(), asked.repository.as_str()), (asked.host.as_str(), "name"));
        let password = |password: &&str| Credential::Password {
            user: "user".to_owned(),
            password: (*password).to_owned(),
        };
        Ok(self.0.iter().map(password).collect())
    }

    fn hint(&self) -> &str {
        "ask whoever knows"
    }
}

#[tokio::test]
async fn several_credentials_are_tried_in_order_and_no_more_often_than_there_are() {
    for authentication in [Authentication::Basic("user:right".to_owned()), token(Some("user:right"), 2)] {
        let registry = FakeRegistry::start();
        registry.put_image("name", "tag", &[]);
        registry.require(authentication.clone());
        let reference = registry.reference("name", "tag");
        let file = json!({ "auths": { registry.url_host(): { "username": "user", "password": "right" } } });
        for (known, in_file, works) in [
            (&["right"][..], false, true),
            (&["wr0ng", "right"], false, true),
            (&["wr0ng"], true, true),
            (&["wr0ng", "wr0ng too"], false, false),
            (&[], false, false),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("config.json");
            std::fs::write(&path, if in_file { file.to_string() } else { "{}".to_owned() }).unwrap();
            let configuration = ClientConfiguration {
                credential_files: vec![path],
                credential_source: Some(Arc::new(Knows(known))),
                ..ClientConfiguration::default()
            };
            let repository = client_with(configuration).repository(&reference).unwrap();
            registry.reset_counters();
            // With tokens that are worn out in between.
            for _ in 0..5 {
                let got = repository.manifest(&reference.target()).await;
                assert_eq!(got.is_ok(), works, "{authentication:?} {known:?}: {got:?}");
                let Err(error) = got else { continue };
                assert_eq!(error.kind(), ErrorKind::Unauthorized);
                assert!(!chain(&error).contains("wr0ng"), "{error:?}");
                assert_eq!(chain(&error).contains("ask whoever knows"), known.is_empty(), "{error:?}");
            }
            let counters = registry.counters();
            assert!(counters.manifests + counters.tokens <= 20, "{authentication:?} {known:?}: {counters:?}");
        }
    }
}

#[tokio::test]
async fn a_token_that_expires_in_the_middle_is_replaced_once() {
    let registry = FakeRegistry::start();
    let bytes = content(100_000);
    let digest = registry.put_blob(bytes.as_slice());
    registry.require(token(None, 2));
    let (client, _directory) = client_with_file(&json!({}));
    let blob = client.repository(&registry.reference("name", "tag")).unwrap().blob(digest, 100_000);
    for start in 0..6_u64 {
        assert_eq!(blob.read(start..start + 1).await.unwrap(), bytes[start as usize..=start as usize]);
    }
    assert_eq!(registry.counters().tokens, 3, "two reads a token");
    registry.revoke_tokens();
    blob.read(0..1).await.unwrap();
    // A token that is never good is not asked for again and again.
    registry.reset_counters();
    registry.require(token(None, 0));
    assert_eq!(blob.read(0..1).await.unwrap_err().kind(), ErrorKind::Unauthorized);
    let counters = registry.counters();
    assert_eq!((counters.blobs, counters.tokens), (2, 1));
}

#[tokio::test]
async fn one_token_serves_all_tasks_that_wait_for_it() {
    let registry = FakeRegistry::start();
    let digest = registry.put_blob(content(1000));
    registry.require(token(None, 1000));
    registry.set_fault_times("/token", Fault::Stall, 1);
    let (client, _directory) = client_with_file(&json!({}));
    let blob = client.repository(&registry.reference("name", "tag")).unwrap().blob(digest, 1000);
    let readers: Vec<_> = (0..8_u64)
        .map(|start| {
            let blob = blob.clone();
            tokio::spawn(async move { blob.read(start..start + 1).await })
        })
        .collect();
    // The token service is asked from within this runtime, which must not be blocked meanwhile.
    let registry = tokio::task::spawn_blocking(move || {
        registry.wait_for_stalled(1);
        registry.release();
        registry
    })
    .await
    .unwrap();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    assert_eq!(registry.counters().tokens, 1);
}

#[tokio::test]
async fn credentials_stay_with_their_host() {
    // Across a redirect: the object store reports any Authorization as a violation, which fails this test.
    let registry = FakeRegistry::start();
    let digest = registry.put_blob(content(1000));
    registry.require(Authentication::Basic("user:secret-word".to_owned()));
    registry.redirect_blobs(None);
    let file = json!({ "auths": { registry.url_host(): { "username": "user", "password": "secret-word" } } });
    let (client, _directory) = client_with_file(&file);
    let blob = client.repository(&registry.reference("name", "tag")).unwrap().blob(digest.clone(), 1000);
    blob.read(0..10).await.unwrap();
    blob.read(10..20).await.unwrap();

    // To a token service on another host, over plain HTTP.
    registry.require(Authentication::Token {
        login: Some("user:secret-word".to_owned()),
        identity_token: None,
        uses: 100,
        realm: Some("http://token-service.invalid/token".to_owned()),
    });
    let (client, _directory) = client_with_file(&file);
    let blob = client.repository(&registry.reference("name", "tag")).unwrap().blob(digest, 1000);
    let error = blob.read(0..10).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert!(
        error.to_string().contains("withheld") && error.to_string().contains("token-service.invalid"),
        "{error}"
    );
    assert!(!format!("{error:?} {}", chain(&error)).contains("secret-word"), "{error:?}");
}

#[tokio::test]
async fn wrong_credentials_are_reported_without_showing_them() {
    for authentication in [Authentication::Basic("user:right".to_owned()), token(Some("user:right"), 100)] {
        let registry = FakeRegistry::start();
        registry.put_image("name", "tag", &[]);
        registry.require(authentication);
        let file = json!({ "auths": { registry.url_host(): { "username": "user", "password": "wr0ng" } } });
        let (client, _directory) = client_with_file(&file);
        let reference = registry.reference("name", "tag");
        let error = client.repository(&reference).unwrap().manifest(&reference.target()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
        let shown = format!("{error:?} {} {client:?}", chain(&error));
        assert!(!shown.contains("wr0ng") && !shown.contains("dXNlcjp3cjBuZw"), "{shown}");
        assert!(registry.counters().manifests <= 2, "wrong credentials are not tried again and again");
    }
}

#[tokio::test]
async fn a_malformed_credential_file_is_named() {
    let registry = FakeRegistry::start();
    registry.put_image("name", "tag", &[]);
    registry.require(token(None, 100));
    let (client, directory) = client_with_file(&json!([]));
    let reference = registry.reference("name", "tag");
    let error = client.repository(&reference).unwrap().manifest(&reference.target()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Local, "{error:?}");
    assert!(error.to_string().contains(&directory.path().display().to_string()), "{error}");
}

#[tokio::test]
async fn a_credential_helper_is_run_and_one_that_hangs_is_stopped() {
    let registry = FakeRegistry::start();
    registry.put_image("name", "tag", &[]);
    registry.require(Authentication::Basic("user:from-helper".to_owned()));
    let directory = tempfile::tempdir().unwrap();
    let helper = directory.path().join("docker-credential-test");
    let file = directory.path().join("config.json");
    let host = registry.url_host();
    std::fs::write(&file, json!({ "credHelpers": { &host: "test" } }).to_string()).unwrap();
    let reference = registry.reference("name", "tag");
    let good = format!(
        r#"read -r server; [ "$1 $server" = "get {host}" ] && echo '{{"ServerURL":"{host}","Username":"user","Secret":"from-helper"}}'"#
    );
    for (script, expected) in [
        (good.as_str(), None),
        ("echo credentials not found in native keychain; exit 1", Some(ErrorKind::Unauthorized)),
        ("echo broken; exit 1", Some(ErrorKind::Local)),
        ("echo nonsense", Some(ErrorKind::Local)),
        ("sleep 1000 & wait", Some(ErrorKind::Local)),
    ] {
        std::fs::write(&helper, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        let timeouts =
            Timeouts { credential_helper: std::time::Duration::from_secs(2), ..Timeouts::default() };
        let configuration = ClientConfiguration {
            credential_files: vec![file.clone()],
            helper_directories: vec![directory.path().to_owned()],
            timeouts,
            ..ClientConfiguration::default()
        };
        let repository = client_with(configuration).repository(&reference).unwrap();
        let result = repository.manifest(&reference.target()).await;
        assert_eq!(result.as_ref().err().map(|error| error.kind()), expected, "{script}: {result:?}");
    }
}

#[tokio::test]
async fn credentials_that_stop_working_are_not_sent_again_and_a_new_login_counts_at_once() {
    let registry = FakeRegistry::start();
    registry.put_image("name", "tag", &[]);
    registry.require(Authentication::Basic("user:old".to_owned()));
    let login = |password: &str| json!({ "auths": { registry.url_host(): { "username": "user", "password": password } } });
    let (client, directory) = client_with_file(&login("old"));
    let reference = registry.reference("name", "tag");
    let repository = client.repository(&reference).unwrap();
    repository.manifest(&reference.target()).await.unwrap();
    registry.require(Authentication::Basic("user:new".to_owned()));
    registry.reset_counters();
    let error = repository.manifest(&reference.target()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error:?}");
    assert_eq!(registry.counters().manifests, 1);
    std::fs::write(directory.path().join("config.json"), login("new").to_string()).unwrap();
    repository.manifest(&reference.target()).await.unwrap();
}
