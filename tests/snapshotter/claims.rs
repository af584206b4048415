//! What labels claim is held against the image's own documents; what is asked of the registry for it is counted.

use crate::support::archive::TestEntry;
use crate::support::blob::Form;
use crate::support::content::Content;
use crate::support::image::{Layout, this_architecture};
use crate::support::peel::Peel;
use crate::support::registry::{FakeRegistry, Fault};
use peelfs::fetch::NetworkThreads;
use peelfs::mount::parts::Bringing;
use peelfs::mount::passthrough::Passthrough;
use peelfs::mount::{Prefetching, Pull, Request};
use peelfs::snapshotter::images::Images;
use peelfs::snapshotter::{LayerRequest, Remote, RemoteStack};
use peelfs::store::Store;
use peelfs_registry::{ClientConfiguration, Digest, ImageReference, Platform, Reference, Timeouts};
use std::sync::Arc;
use std::time::Duration;

/// An image of lazy layers in a registry, and who asks for it.
struct Scene {
    peel: Peel,
    registry: FakeRegistry,
    threads: NetworkThreads,
    layout: Layout,
    reference: Reference,
    chain_ids: Vec<String>,
}

impl Scene {
    fn new(forms: &[Form]) -> Scene {
        let (peel, registry) = (Peel::new(), FakeRegistry::start());
        let mut layout = Layout::create(peel.scratch().join("layout"));
        let layers = forms.iter().enumerate();
        // Each is longer than what is fetched of its end.
        let layers = layers.map(|(number, form)| {
            let content = Content::Noise { seed: number as u64, length: 200_000 };
            layout.put_layer(&[TestEntry::file(format!("file{number}"), content)], *form)
        });
        let layers: Vec<_> = layers.collect();
        let image = layout.put_image(&layers, this_architecture());
        layout.tag("test", &image);
        let ImageReference::Registry(reference) = layout.serve(&registry, "small", "test").parse().unwrap()
        else {
            panic!("a registry's")
        };
        let chain_ids = super::chain_ids(&layout, "test");
        Scene { peel, registry, threads: NetworkThreads::new(|| {}), layout, reference, chain_ids }
    }

    fn images(&self, bringing: Bringing) -> Images {
        let store = Arc::new(Store::open(self.peel.store()).unwrap());
        let request = |reference| Request {
            reference,
            platform: Platform::host(),
            pinned: None,
            takes_over: None,
            pull: Pull::Missing,
            client: ClientConfiguration {
                timeouts: Timeouts::of_operations(Duration::from_secs(5)),
                ..ClientConfiguration::default()
            },
            read_deadline: Duration::from_secs(5),
            trust_referrers: false,
            records_profile: false,
            prefetching: Prefetching::None,
            profile_from_registry: false,
            known_by: std::process::id(),
            status_files: false,
            passthrough: Passthrough::Never,
            progress: Arc::new(|_| {}),
        };
        let mounter = |_: &RemoteStack, _: &std::path::Path| Err("nobody mounts here".into());
        Images::new(store, self.threads.starter().clone(), request, bringing, Box::new(mounter))
    }

    /// What containerd asks for when it comes to that layer, counted from 0.
    fn wanted(&self, layer: usize) -> LayerRequest {
        let manifest = self.layout.manifest("test");
        LayerRequest {
            target: self.chain_ids[layer].parse().unwrap(),
            layer: manifest["layers"][layer]["digest"].as_str().unwrap().parse().unwrap(),
            reference: self.reference.clone(),
            manifest: None,
        }
    }
}

fn other() -> Digest {
    Digest::sha256_of(b"another")
}

#[test]
fn a_layer_that_the_image_does_not_have_so_is_not_brought() {
    let scene = Scene::new(&[Form::ESTARGZ; 3]);
    let images = scene.images(Bringing::Lazily);
    let manifest: Digest = scene.layout.descriptor("test")["digest"].as_str().unwrap().parse().unwrap();
    for (why, wanted) in [
        ("another layer", LayerRequest { layer: other(), ..scene.wanted(0) }),
        ("another stack", LayerRequest { target: other(), ..scene.wanted(0) }),
        (
            "its layer, but not of that stack",
            LayerRequest { layer: scene.wanted(1).layer, ..scene.wanted(0) },
        ),
        ("its stack, by another layer", LayerRequest { target: scene.wanted(2).target, ..scene.wanted(1) }),
    ] {
        assert_eq!(images.bring(&wanted, "").unwrap(), None, "{why}");
    }
    assert!(
        images.bring(&LayerRequest { manifest: Some(other()), ..scene.wanted(0) }, "").is_err(),
        "no such manifest"
    );
    let stack = images
        .bring(&LayerRequest { manifest: Some(manifest.clone()), ..scene.wanted(0) }, "")
        .unwrap()
        .unwrap();
    assert_eq!((stack.layers, stack.manifest_digest), (1, manifest.to_string()));
}

#[test]
fn an_image_is_asked_for_once_and_each_layer_once_whoever_asks_for_it() {
    let scene = Scene::new(&[Form::ESTARGZ; 4]);
    let images = scene.images(Bringing::Lazily);
    std::thread::scope(|scope| {
        for layer in 0..4 {
            let (images, scene) = (&images, &scene);
            scope.spawn(move || {
                // The first is known before the others ask: they do that one after the other.
                let first = images.bring(&scene.wanted(0), "").unwrap().unwrap();
                let stack = images.bring(&scene.wanted(layer), "").unwrap().unwrap();
                assert_eq!(stack.layers as usize, layer + 1);
                assert_eq!(stack.tree == first.tree, layer == 0, "a tree of its own");
            });
        }
    });
    let layer_requests = scene.registry.counters().blobs - scene.registry.counters().manifests;
    assert_eq!(layer_requests, 4, "{:?}", scene.registry.requests());
    // A later process asks nobody, once an image of that manifest is wanted.
    drop(images);
    let before = scene.registry.counters();
    let manifest = scene.layout.descriptor("test")["digest"].as_str().unwrap().parse().ok();
    let again = scene.images(Bringing::Lazily).bring(&LayerRequest { manifest, ..scene.wanted(3) }, "");
    assert_eq!(again.unwrap().unwrap().layers, 4);
    assert_eq!(scene.registry.counters(), before);
}

#[test]
fn what_would_have_to_be_streamed_is_not_touched_unless_it_may_be() {
    let scene = Scene::new(&[Form::ESTARGZ, Form::GZIP]);
    let images = scene.images(Bringing::Lazily);
    assert!(images.bring(&scene.wanted(0), "").unwrap().is_some());
    assert_eq!(images.bring(&scene.wanted(1), "").unwrap(), None);
    let counters = scene.registry.counters();
    assert!(counters.blob_bytes < 150_000, "{counters:?}");
    let streaming = scene.images(Bringing::OrStreamed);
    let stack = streaming.bring(&scene.wanted(1), "").unwrap().unwrap();
    let used = streaming.usage(&stack).unwrap();
    assert!((200_000..800_000).contains(&used.bytes) && used.inodes > 0, "{used:?}");
}

#[test]
fn a_registry_that_fails_is_an_error_and_the_next_try_succeeds() {
    let scene = Scene::new(&[Form::ESTARGZ; 2]);
    let images = scene.images(Bringing::Lazily);
    scene.registry.set_fault("manifests/", Fault::Status(403));
    assert!(images.bring(&scene.wanted(0), "").is_err());
    scene.registry.clear_faults();
    let layer = scene.wanted(0).layer;
    scene.registry.set_fault(layer.as_str(), Fault::Status(403));
    let error = images.bring(&scene.wanted(0), "").unwrap_err();
    assert!(error.to_string().contains(layer.as_str()), "{error}");
    scene.registry.clear_faults();
    assert!(images.bring(&scene.wanted(1), "").unwrap().is_some());
}

#[test]
fn documents_at_hand_are_used_if_they_are_what_their_digests_say_and_the_registry_is_asked_for_others() {
    type Given = Option<(Vec<u8>, Vec<u8>)>;
    let read = |scene: &Scene| {
        let manifest = scene.layout.manifest("test");
        let blob = |digest: &serde_json::Value| {
            std::fs::read(scene.layout.blob_path(digest.as_str().unwrap())).unwrap()
        };
        (blob(&scene.layout.descriptor("test")["digest"]), blob(&manifest["config"]["digest"]))
    };
    // What somebody has at hand, and whether the registry is asked for both documents.
    type Case = (&'static str, fn(Vec<u8>, Vec<u8>) -> Given, bool);
    let cases: [Case; 6] = [
        ("both", |manifest, config| Some((manifest, config)), false),
        ("nothing", |_, _| None, true),
        (
            "another manifest, as good as any",
            |mut manifest, config| {
                manifest.push(b' ');
                Some((manifest, config))
            },
            true,
        ),
        (
            "another config, as good as any",
            |manifest, mut config| {
                config.push(b' ');
                Some((manifest, config))
            },
            true,
        ),
        ("no manifest", |_, config| Some((b"{}".to_vec(), config)), true),
        ("a config for both", |_, config| Some((config.clone(), config)), true),
    ];
    for (what, given, is_asked) in cases {
        let scene = Scene::new(&[Form::ESTARGZ]);
        let digest: Digest = scene.layout.descriptor("test")["digest"].as_str().unwrap().parse().unwrap();
        let (documents, named) = (read(&scene), digest.clone());
        let images = scene.images(Bringing::Lazily).with_documents(Box::new(move |namespace, manifest| {
            assert_eq!((namespace, manifest), ("a-namespace", &named));
            given(documents.0.clone(), documents.1.clone())
                .map(|(manifest, config)| (manifest.into(), config.into()))
        }));
        let wanted = LayerRequest { manifest: Some(digest.clone()), ..scene.wanted(0) };
        let stack = images.bring(&wanted, "a-namespace").unwrap().unwrap();
        assert_eq!((stack.layers, stack.manifest_digest), (1, digest.to_string()), "{what}");
        let counters = scene.registry.counters();
        let documents = u64::from(is_asked);
        assert_eq!((counters.manifests, counters.blobs), (documents, documents + 1), "{what}");
    }
}
