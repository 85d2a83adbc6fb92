//! Damage in an origin's objects: what a repair of the clone does about it, and that it is the clone's own bucket alone that it
//! writes to.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_repair_of_a_clone_puts_no_object_of_its_origin_back() {
    let mut street = Street::new(271, small_settings());
    street.init("origin", SIZE).await;
    let origin = street.open("origin").await;
    origin.write(0, Bytes::from(noise(&mut Prng::new(1), 10_000)), false).await.unwrap();
    origin.sync().await.unwrap();
    let objects = street.names("origin/objects/");
    street.clone_open("origin", &origin, None, "clone").await.unwrap();
    origin.close().await.unwrap();
    let mut contents = street.memory.snapshot();
    let mut bytes = contents.get(&objects[0]).unwrap().to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    contents.set(&objects[0], bytes.into());
    street.memory.restore(contents);
    let of_origin = |street: &Street| {
        let contents = street.memory.snapshot();
        let below = contents.iter().filter(|(name, _)| name.starts_with("origin/"));
        below.map(|(name, bytes)| (name.to_owned(), bytes.clone())).collect::<Vec<_>>()
    };
    let before = of_origin(&street);
    let report = street.check("clone").await;
    let found: Vec<_> = faults(&report).collect();
    let [Finding::ObjectIndex { listed: true, mirrored: true, .. }] = found[..] else { panic!("{found:#?}") };
    let applied = street.repair("clone", &report).await;
    assert_eq!((applied.objects_put_back, &applied.failed), (0, &Vec::new()));
    assert!(of_origin(&street) == before, "it wrote to its origin");
    // Its own maps say by now what is in it.
    street.assert_sound("clone").await;
    let report = street.check("origin").await;
    assert_eq!(street.repair("origin", &report).await.objects_put_back, 1);
    street.assert_sound("origin").await;
}
