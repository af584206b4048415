//! Promise: a registry that goes silent while an image is mounted is given up within the time that the user set, with an error that
//! names image, host and what was waited for; nothing is mounted, and the next mount works. No test here waits for a clock: the
//! registry is silent until the test is over.

use super::*;

/// What a registry does that has gone silent.
#[derive(Clone, Copy, Debug)]
enum Silence {
    /// It takes the request and says nothing.
    Whole,
    /// It says one byte of its answer, each time it is asked.
    AfterOneByte,
}

impl Silence {
    fn fault(self) -> Fault {
        match self {
            Silence::Whole => Fault::Stall,
            Silence::AfterOneByte => Fault::StallAfter(1),
        }
    }
}

/// Mounting is given up, naming `subject` and the host; once the registry speaks again, the same store mounts the image.
#[track_caller]
fn is_given_up(served: &Served, subject: &str) {
    let (peel, host) = (Peel::new(), served.registry.url_host());
    let point = peel.mount_point();
    let outcome = peel.run(&["mount", &served.reference, point.to_str().unwrap(), "--network-timeout", "1"]);
    is_an_error(&outcome, UNREACHABLE, &served.reference, &[subject, &host]);
    assert!(!is_mount_point(&point), "something is mounted after {outcome:?}");
    assert!(!served.registry.requests().is_empty());
    served.registry.clear_faults();
    served.registry.release();
    peel.wait_for_servers_to_end();
    let mount = peel.mount(&served.reference);
    assert_eq!(fs::read(mount.join("small")).unwrap(), b"small");
    mount.unmount();
}

#[test]
fn mounting_is_given_up_when_the_registry_goes_silent() {
    std::thread::scope(|scope| {
        for silence in [Silence::Whole, Silence::AfterOneByte] {
            scope.spawn(move || {
                let served = Served::image(Form::GZIP);
                served.registry.set_fault("manifests/", silence.fault());
                is_given_up(&served, "manifest test");
            });
            scope.spawn(move || {
                let served = Served::image(Form::GZIP);
                let config = served.config_digest();
                served.registry.set_fault(&config, silence.fault());
                is_given_up(&served, &config);
            });
            // A layer that is streamed, and one of which only the table of contents is asked for.
            for form in [Form::GZIP, Form::Estargz(SMALL_CHUNKS)] {
                scope.spawn(move || {
                    let served = Served::image(form);
                    let layer = served.layer_digest();
                    served.registry.set_fault(&layer, silence.fault());
                    is_given_up(&served, &layer);
                });
            }
        }
        scope.spawn(|| {
            let served = Served::image(Form::GZIP);
            let layer = served.layer_digest();
            served.registry.set_fault_times(&layer, Fault::StallAfter(1 << 20), 1);
            served.registry.set_fault(&layer, Fault::Stall);
            is_given_up(&served, &layer);
        });
        scope.spawn(|| {
            let served = Served::image(Form::GZIP);
            served.registry.require(Authentication::Token {
                login: None,
                identity_token: None,
                uses: usize::MAX,
                realm: None,
            });
            served.registry.set_fault("/token", Fault::Stall);
            is_given_up(&served, "manifest test");
        });
    });
}

#[test]
fn a_layer_that_comes_in_fits_and_starts_is_mounted() {
    let served = Served::image(Form::GZIP);
    // Each answer ends in silence, but each brings more than the one before.
    served.registry.set_fault_times(&served.layer_digest(), Fault::StallAfter(700 << 10), 4);
    let peel = Peel::new();
    let mount = peel.mount_with(&served.reference, &["--network-timeout", "2"]);
    assert!(fs::read(mount.join("large")).unwrap() == noise(3 << 20).to_vec());
    mount.unmount();
}
