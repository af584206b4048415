//! Promise: what is mounted is the image, in every attribute and byte. Judged by umoci for real images, and by the reference
//! model for generated ones.

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form, Landmark};
use crate::support::cases::{
    deep_path, every_case, every_case_of_archives, huge_files, many_files, many_layers,
};
use crate::support::image::Layout;
use crate::support::model::Model;
use crate::support::peel::Peel;
use crate::support::tools::{Unpacked, docker_registry, push, real_images};
use crate::support::tree::{Allowed, Aspect, Tree, assert_same};
use std::sync::OnceLock;

/// Mounts an image of these layers and compares it with the model.
#[track_caller]
fn mount_is_the_model(layers: &[Vec<TestEntry>], form: Form) {
    let peel = Peel::new();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", layers, form);
    let model = Model::of(layers).unwrap_or_else(|refusal| panic!("{}", refusal.0)).tree();
    let mount = peel.mount(&reference);
    assert_same(&Tree::walk(mount.path()), &model, &[]);
    mount.unmount();
}

#[test]
fn a_mounted_tar_is_the_image() {
    mount_is_the_model(&every_case_of_archives(), Form::Tar);
}

#[test]
fn a_mounted_gzip_is_the_image() {
    mount_is_the_model(&every_case_of_archives(), Form::GZIP);
}

#[test]
fn a_mounted_gzip_of_many_members_is_the_image() {
    mount_is_the_model(&every_case_of_archives(), Form::Gzip { members: 97 });
}

#[test]
fn a_mounted_zstd_is_the_image() {
    mount_is_the_model(&every_case_of_archives(), Form::ZSTD);
}

#[test]
fn a_mounted_zstd_of_many_frames_is_the_image() {
    mount_is_the_model(&every_case_of_archives(), Form::Zstd { frames: 97 });
}

#[test]
fn a_mounted_estargz_is_the_image() {
    let small_chunks = |footer, annotated, landmark| {
        Form::Estargz(Estargz { chunk_size: 100_000, footer, annotated, landmark })
    };
    mount_is_the_model(&every_case(), Form::ESTARGZ);
    mount_is_the_model(&every_case(), small_chunks(Footer::Legacy, true, None));
    mount_is_the_model(&every_case(), small_chunks(Footer::Modern, true, Some(Landmark::Prefetch)));
}

#[test]
fn a_mounted_image_of_sixty_layers_is_the_image() {
    mount_is_the_model(&many_layers(60), Form::GZIP);
    mount_is_the_model(&many_layers(60), Form::ESTARGZ);
}

#[test]
fn a_mounted_layer_of_twenty_thousand_files_is_the_image() {
    mount_is_the_model(&[many_files(20_000)], Form::ZSTD);
}

#[test]
fn a_mounted_path_of_six_hundred_components_is_the_image() {
    mount_is_the_model(&[deep_path(600)], Form::GZIP);
    mount_is_the_model(&[deep_path(600)], Form::ESTARGZ);
}

#[test]
fn mounted_files_of_many_gibibytes_are_the_image() {
    mount_is_the_model(&[huge_files()], Form::GZIP);
}

/// The python image of that form equals what umoci makes of its ordinary form.
#[track_caller]
fn python_is_what_umoci_unpacks(form: &str, allowed: &[Allowed]) {
    static UNPACKED: OnceLock<Unpacked> = OnceLock::new();
    let layout = real_images().join("python");
    let unpacked = UNPACKED.get_or_init(|| {
        Unpacked::by_umoci(&format!("{}:gzip", layout.display())).expect("umoci unpacks its own image")
    });
    let expected = Tree::walk(&unpacked.path());
    assert!(expected.nodes.len() > 13_000, "the image is smaller than it should be");

    let peel = Peel::new();
    let from_layout = peel.mount(&format!("oci:{}:{form}", layout.display()));
    assert_same(&Tree::walk(from_layout.path()), &expected, allowed);
    from_layout.unmount();

    let registry = docker_registry();
    let fresh = Peel::new();
    let from_registry = fresh.mount(&push(&layout, form, &registry, "python"));
    assert_same(&Tree::walk(from_registry.path()), &expected, allowed);
    from_registry.unmount();
}

#[test]
fn debian_python_gzip_is_what_umoci_unpacks() {
    python_is_what_umoci_unpacks("gzip", &[]);
}

#[test]
fn debian_python_zstd_is_what_umoci_unpacks() {
    python_is_what_umoci_unpacks("zstd", &[]);
}

#[test]
fn debian_python_tar_is_what_umoci_unpacks() {
    python_is_what_umoci_unpacks("tar", &[]);
}

#[test]
fn debian_python_estargz_is_what_umoci_unpacks() {
    let no_utf8 = Allowed::new(
        "names that are not UTF-8: a table of contents is JSON and cannot hold them",
        |difference| {
            difference.path.starts_with(b"app/latin1-")
                && matches!(difference.aspect, Aspect::OnlyLeft | Aspect::OnlyRight)
        },
    );
    python_is_what_umoci_unpacks("estargz", &[no_utf8]);
}
