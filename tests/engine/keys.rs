//! Key slots: who opens the volume after each step of adding, removing and changing secrets, whatever fails at it; and what
//! a secret that does not open it is told.

use std::{sync::Arc, time::Duration};

use s3bd::{
    format::slot::{Argon2, Slot},
    seal::{recovery::RecoveryKey, slot::Secret},
    store::{
        ErrorKind, PutMode, Range, Store,
        faulty::{Call, Fault, Faulty, SeededPlan},
        memory::Memory,
    },
    volume::{
        error::VolumeError,
        slots::{self, Changed, NewSecret, Unlocked},
    },
};

use crate::{
    host::{Disks, env, make},
    rig::retrying,
};

const CHEAP: Argon2 = Argon2 { memory_kib: 64, passes: 1, lanes: 1 };
/// Longer than any change of a faulty store takes to land.
const LATE: Duration = Duration::from_secs(1);

fn password(text: &str) -> Secret {
    Secret::password(text)
}

fn recovery() -> Secret {
    Secret::RecoveryKey(RecoveryKey::new([9; 32]))
}

/// A volume with two slots: the password "secret", labelled "first", and a recovery key.
async fn volume() -> Memory {
    let store = Memory::new();
    make(&store, 1 << 20).await;
    add(Arc::new(store.clone()), 1, &recovery(), "recovery key").await.unwrap();
    store
}

fn new<'a>(secret: &'a Secret, label: &'a str) -> NewSecret<'a> {
    NewSecret { secret, cost: CHEAP, label }
}

fn host(store: Arc<dyn Store>, seed: u64) -> s3bd::volume::env::Env {
    env(store, &Disks::new(), seed, "here")
}

async fn unlocked(store: &dyn Store) -> Result<Unlocked, VolumeError> {
    slots::unlock(store, &password("secret")).await
}

async fn add(store: Arc<dyn Store>, seed: u64, secret: &Secret, label: &str) -> Result<String, VolumeError> {
    let unlocked = unlocked(&*store).await?;
    slots::add(&host(store, seed), &unlocked, &new(secret, label)).await
}

async fn remove(store: Arc<dyn Store>, seed: u64, which: &str) -> Result<(), VolumeError> {
    let unlocked = unlocked(&*store).await?;
    let name = slots::find(&slots::load_slots(&*store).await?, which)?.name.clone();
    slots::remove(&host(store, seed), &unlocked.header, &name).await
}

async fn change(store: Arc<dyn Store>, seed: u64) -> Result<Changed, VolumeError> {
    let unlocked = unlocked(&*store).await?;
    let old = password("secret");
    slots::change(&host(store, seed), &unlocked, &old, &new(&password("new"), "first")).await
}

/// Another slot of the password "secret", as versions that did not look for one made them.
async fn double(store: &Memory) {
    let first = slots::find(&slots::load_slots(store).await.unwrap(), "first").unwrap().name.clone();
    let bytes = store.get(&first, Range::Full).await.unwrap().bytes;
    store.put("keys/00000009", &[bytes], PutMode::Create).await.unwrap();
}

async fn opens(store: &Memory, secret: &Secret) -> bool {
    slots::unlock(store, secret).await.is_ok()
}

async fn count(store: &Memory) -> usize {
    slots::load_slots(store).await.unwrap().len()
}

/// What the procedures are, with what they promise of a store where one operation failed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Procedure {
    Add,
    RemoveOther,
    RemoveOwn,
    Change,
    /// With a second slot of the old secret.
    ChangeTwo,
}

impl Procedure {
    async fn volume(self) -> Memory {
        let store = volume().await;
        if self == Self::ChangeTwo {
            double(&store).await;
        }
        store
    }

    async fn run(self, store: Arc<dyn Store>, seed: u64) -> Result<(), VolumeError> {
        match self {
            Self::Add => add(store, seed, &password("new"), "new").await.map(drop),
            Self::RemoveOther => remove(store, seed, "recovery key").await,
            Self::RemoveOwn => remove(store, seed, "first").await,
            Self::Change | Self::ChangeTwo => change(store, seed).await.map(drop),
        }
    }

    async fn check(self, store: &Memory, done: bool, case: &str) {
        let (old, new) = (opens(store, &password("secret")).await, opens(store, &password("new")).await);
        let other = opens(store, &recovery()).await;
        match self {
            Self::Add => assert!(old && other && (new || !done), "{case}"),
            Self::RemoveOther => assert!(old && !(done && other), "{case}"),
            Self::RemoveOwn => assert!(other && !(done && old), "{case}"),
            Self::Change | Self::ChangeTwo => {
                assert!(other && (old || new) && !(done && old), "{case}");
            }
        }
        if matches!(self, Self::Change | Self::ChangeTwo) && old {
            change(Arc::new(store.clone()), 77).await.unwrap();
            assert!(
                opens(store, &password("new")).await && !opens(store, &password("secret")).await,
                "{case}"
            );
            assert_eq!(count(store).await, 2, "{case}: the second run takes what the first one made");
        }
    }
}

const PROCEDURES: [Procedure; 5] =
    [Procedure::Add, Procedure::RemoveOther, Procedure::RemoveOwn, Procedure::Change, Procedure::ChangeTwo];

/// One fault at a call, and what becomes of the calls after it.
#[derive(Clone, Copy, Debug)]
struct At {
    fault: Fault,
    dies: bool,
}

impl At {
    fn plan(self, at: u64) -> impl Fn(&Call<'_>) -> Fault {
        move |call| match call.index.cmp(&at) {
            std::cmp::Ordering::Equal => self.fault,
            std::cmp::Ordering::Greater if self.dies => Fault::Before(ErrorKind::Denied),
            _ => Fault::None,
        }
    }
}

fn at(fault: Fault) -> At {
    At { fault, dies: false }
}

/// Runs each procedure with a fault at each of its calls; returns the number of runs.
async fn fail_everywhere(faults: &[At], patient: bool) -> u64 {
    let mut runs = 0;
    for procedure in PROCEDURES {
        let whole = Faulty::new(procedure.volume().await);
        procedure.run(Arc::new(whole.clone()), 1).await.unwrap();
        let calls = whole.counts().total();
        for (index, fault) in (0..calls).flat_map(|index| faults.iter().map(move |fault| (index, *fault))) {
            let store = procedure.volume().await;
            let faulty = Faulty::with_plan(store.clone(), fault.plan(index));
            let seen: Arc<dyn Store> = match patient {
                true => retrying(faulty.clone(), 1),
                false => Arc::new(faulty.clone()),
            };
            let done = procedure.run(seen, 1).await;
            let case = format!("{procedure:?}, {fault:?} at {index}: {done:?}");
            assert!(done.is_ok() || !patient, "{case}");
            tokio::time::sleep(2 * LATE).await;
            assert_eq!(faulty.late_pending(), 0);
            procedure.check(&store, done.is_ok(), &case).await;
            runs += 1;
        }
    }
    runs
}

#[tokio::test(start_paused = true)]
async fn wherever_a_process_dies_a_secret_opens_the_volume() {
    let deaths = [Fault::Before(ErrorKind::Denied), Fault::After, Fault::Late(LATE), Fault::Twice(LATE)];
    let runs = fail_everywhere(&deaths.map(|fault| At { fault, dies: true }), false).await;
    assert!(runs > 100, "{runs}");
}

#[tokio::test(start_paused = true)]
async fn whichever_call_fails_a_secret_opens_the_volume() {
    let faults = [
        Fault::Before(ErrorKind::Denied),
        Fault::Before(ErrorKind::Retry),
        Fault::After,
        Fault::Late(LATE),
        Fault::Twice(LATE),
        Fault::CutShort,
        Fault::FlipBit(1000),
    ];
    let runs = fail_everywhere(&faults.map(at), false).await;
    assert!(runs > 200, "{runs}");
}

#[tokio::test(start_paused = true)]
async fn what_passes_is_waited_out() {
    let faults = [Fault::Before(ErrorKind::Retry), Fault::After, Fault::Late(LATE), Fault::Twice(LATE)];
    fail_everywhere(&[&faults.map(at)[..], &[at(Fault::FlipBit(1000))]].concat(), true).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_removes_every_slot_of_the_old_secret_and_no_other() {
    let store = volume().await;
    double(&store).await;
    let changed = change(Arc::new(store.clone()), 5).await.unwrap();
    assert_eq!(changed.old.len(), 2);
    assert!(!opens(&store, &password("secret")).await && opens(&store, &recovery()).await);
    let names: Vec<_> = slots::load_slots(&store).await.unwrap().into_iter().map(|slot| slot.name).collect();
    assert!(names.len() == 2 && names.contains(&changed.new), "{names:?}");
    // The same secret at another cost: its new slot stays.
    let unlocked = slots::unlock(&store, &password("new")).await.unwrap();
    let (secret, env) = (password("new"), host(Arc::new(store.clone()), 6));
    let dearer = NewSecret { secret: &secret, cost: Argon2 { passes: 2, ..CHEAP }, label: "first" };
    let again = slots::change(&env, &unlocked, &secret, &dearer).await.unwrap();
    assert_eq!(again.old, [changed.new]);
    assert!(opens(&store, &secret).await && count(&store).await == 2);
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_opens_the_volume_already_is_not_added() {
    let store = volume().await;
    let before = store.snapshot();
    for (secret, label) in [(password("secret"), "first"), (recovery(), "recovery key")] {
        let refused = add(Arc::new(store.clone()), 8, &secret, "other").await.unwrap_err();
        assert!(matches!(&refused, VolumeError::SecretKnown { label: of, .. } if of == label), "{refused}");
    }
    assert!(store.snapshot() == before);
}

#[tokio::test(start_paused = true)]
async fn no_secret_takes_the_place_of_another_that_opens_a_slot_of_its_own() {
    let store = volume().await;
    add(Arc::new(store.clone()), 8, &password("other"), "other").await.unwrap();
    let before = store.snapshot();
    let unlocked = unlocked(&store).await.unwrap();
    let env = host(Arc::new(store.clone()), 9);
    let dear = Argon2 { passes: 2, ..CHEAP };
    for (secret, cost, of) in [
        (recovery(), CHEAP, "recovery key"),
        (password("other"), CHEAP, "other"),
        (password("other"), dear, "other"),
    ] {
        let new = NewSecret { secret: &secret, cost, label: "first" };
        let refused = slots::change(&env, &unlocked, &password("secret"), &new).await.unwrap_err();
        assert!(matches!(&refused, VolumeError::SecretKnown { label, .. } if label == of), "{refused}");
    }
    assert!(store.snapshot() == before);
}

#[tokio::test(start_paused = true)]
async fn the_last_way_in_cannot_be_removed() {
    let store = volume().await;
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    remove(Arc::clone(&shared), 1, "recovery key").await.unwrap();
    let before = store.snapshot();
    let refused = remove(Arc::clone(&shared), 1, "first").await.unwrap_err();
    assert!(matches!(refused, VolumeError::LastSlot { .. }), "{refused}");
    assert!(store.snapshot() == before);
    // Slots that are damaged, of another volume, or for no secret are no ways in; they can go.
    let first = slots::load_slots(&store).await.unwrap().remove(0).slot.unwrap();
    let mut others = vec![b"rubbish".to_vec()];
    others.push(Slot { volume: s3bd::format::ids::VolumeId([3; 16]), ..first.clone() }.encode().unwrap());
    let unlock = s3bd::format::slot::Unlock::Nothing;
    others.push(Slot { unlock, label: "none".to_owned(), ..first }.encode().unwrap());
    for (number, bytes) in others.into_iter().enumerate() {
        let name = format!("keys/{number:08x}");
        store.put(&name, &[bytes.into()], PutMode::Create).await.unwrap();
        let header = unlocked(&*shared).await.unwrap();
        let refused = slots::remove(&host(Arc::clone(&shared), 1), &header.header, &header.slot).await;
        assert!(matches!(refused, Err(VolumeError::LastSlot { .. })), "{name}");
        remove(Arc::clone(&shared), 1, &name).await.unwrap();
    }
    assert!(store.snapshot() == before);
}

fn slow(store: &Memory, seed: u64) -> Arc<dyn Store> {
    let delay_max = Duration::from_millis(20);
    let plan = SeededPlan { seed, delay: 900, delay_max, ..SeededPlan::default() };
    Arc::new(Faulty::with_plan(store.clone(), plan))
}

#[tokio::test(start_paused = true)]
async fn of_hosts_that_add_at_once_none_writes_over_another() {
    for seed in 0..40 {
        for (create_honoured, random) in [(true, seed), (false, seed), (true, 1000)] {
            let store = volume().await;
            store.set_create_honoured(create_honoured);
            // Of the same randomness, two hosts draw the same names; only a store that honours create-only puts is safe then.
            let randomness = |host: u64| if random == 1000 { 1000 } else { 2 * random + host + 5 };
            let (one, two) = (password("one"), password("two"));
            let (first, second) = tokio::join!(
                add(slow(&store, 2 * seed), randomness(0), &one, "one"),
                add(slow(&store, 2 * seed + 1), randomness(1), &two, "two"),
            );
            assert_ne!(first.unwrap(), second.unwrap(), "{seed}");
            for secret in [one, two, recovery(), password("secret")] {
                assert!(opens(&store, &secret).await, "{seed}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_slot_that_was_written_over_in_the_same_moment_is_put_elsewhere() {
    let store = volume().await;
    store.set_create_honoured(false);
    let theirs = slots::load_slots(&store).await.unwrap()[0].name.clone();
    let theirs = store.get(&theirs, Range::Full).await.unwrap().bytes;
    let faulty = Faulty::with_plan(store.clone(), |call: &Call<'_>| match call.operation {
        "put" => Fault::Delay(LATE),
        "get" => Fault::Delay(LATE),
        _ => Fault::None,
    });
    let unlocked = unlocked(&store).await.unwrap();
    let secret = password("new");
    let adding =
        async { slots::add(&host(Arc::new(faulty), 3), &unlocked, &new(&secret, "new")).await.unwrap() };
    let overwriting = async {
        // Between its put and its reading back.
        let name = loop {
            if let Ok(added) = slots::find(&slots::load_slots(&store).await.unwrap(), "new") {
                break added.name.clone();
            }
            tokio::time::sleep(LATE / 4).await;
        };
        store.put(&name, &[theirs], PutMode::Create).await.unwrap();
        name
    };
    let (name, overwritten) = tokio::join!(adding, overwriting);
    assert_ne!(name, overwritten);
    assert!(opens(&store, &secret).await);
    assert_eq!(count(&store).await, 4);
}

#[tokio::test(start_paused = true)]
async fn hosts_that_remove_the_last_two_slots_at_once_lock_nobody_out() {
    let mut both = 0;
    for seed in 0..60 {
        let store = volume().await;
        let (first, second) = tokio::join!(
            remove(slow(&store, 2 * seed), 5, "first"),
            remove(slow(&store, 2 * seed + 1), 6, "recovery key"),
        );
        both += u32::from(first.is_err() && second.is_err());
        let left = [opens(&store, &password("secret")).await, opens(&store, &recovery()).await];
        assert!(left.contains(&true), "{seed}: {first:?}, {second:?}");
    }
    assert!(both > 0, "the case that is meant never came about");
}

#[tokio::test(start_paused = true)]
async fn a_wrong_secret_costs_one_derivation_for_each_slot_of_its_kind() {
    let store = volume().await;
    add(Arc::new(store.clone()), 2, &password("another"), "another").await.unwrap();
    let refused = slots::unlock(&store, &password("wrong")).await.unwrap_err();
    assert!(matches!(refused, VolumeError::WrongSecret { slots: 2 }), "{refused}");
    let key = Secret::RecoveryKey(RecoveryKey::new([8; 32]));
    let refused = slots::unlock(&store, &key).await.unwrap_err();
    assert!(matches!(refused, VolumeError::WrongSecret { slots: 1 }), "{refused}");
    remove(Arc::new(store.clone()), 1, "recovery key").await.unwrap();
    let refused = slots::unlock(&store, &key).await.unwrap_err();
    assert!(matches!(refused, VolumeError::NoFittingSlot { slots: 2, .. }), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_slot_is_no_wrong_password_and_a_wrong_password_no_damage() {
    let store = Memory::new();
    make(&store, 1 << 20).await;
    let name = slots::load_slots(&store).await.unwrap().remove(0).name;
    let whole = store.get(&name, Range::Full).await.unwrap().bytes;
    let with = |bytes: Vec<u8>| async {
        let mut contents = store.snapshot();
        contents.set(&name, bytes.into());
        let damaged = Memory::new();
        damaged.restore(contents);
        let right = slots::unlock(&damaged, &password("secret")).await;
        (right, slots::unlock(&damaged, &password("wrong")).await.unwrap_err())
    };
    for at in 0..whole.len() {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1;
        let (right, wrong) = with(bytes).await;
        assert!(matches!(right, Err(VolumeError::NoSlot { .. })), "byte {at}: {right:?}");
        assert!(matches!(wrong, VolumeError::NoSlot { .. }), "byte {at}: {wrong}");
    }
    // Damage under a checksum that holds.
    let slot = Slot::decode(&whole).unwrap();
    let mut sealed = slot.clone();
    sealed.wrapped[0][3] ^= 1;
    let relabelled = Slot { label: "other".to_owned(), ..slot };
    for damaged in [sealed, relabelled] {
        let (right, wrong) = with(damaged.encode().unwrap()).await;
        let right = right.unwrap_err().to_string();
        assert!(right.contains("the secret is right, but the key slot is damaged"), "{right}");
        assert!(matches!(wrong, VolumeError::WrongSecret { slots: 1 }), "{wrong}");
    }
    // What is too large for a slot is not even fetched.
    let (right, _) = with(vec![0; 70_000]).await;
    assert!(right.unwrap_err().to_string().contains("larger than a slot can be"));
    // Beside a whole slot, nobody can say which of them a wrong secret was meant for.
    let store = volume().await;
    add(Arc::new(store.clone()), 2, &password("another"), "another").await.unwrap();
    let mut contents = store.snapshot();
    contents.set(&name, b"rubbish".as_slice().into());
    store.restore(contents);
    let refused = slots::unlock(&store, &password("wrong")).await.unwrap_err().to_string();
    assert!(refused.contains(&name) && refused.contains("wrong for the 1 whole ones"), "{refused}");
    assert!(opens(&store, &password("another")).await && opens(&store, &recovery()).await);
}

#[tokio::test(start_paused = true)]
async fn a_cost_that_no_reader_would_take_makes_no_slot() {
    let store = volume().await;
    let unlocked = unlocked(&store).await.unwrap();
    let before = store.snapshot();
    for cost in [
        Argon2 { passes: 65, ..CHEAP },
        Argon2 { memory_kib: (4 << 20) + 1, ..CHEAP },
        Argon2 { memory_kib: 7, ..CHEAP },
        Argon2 { lanes: 0, ..CHEAP },
    ] {
        let (secret, env) = (password("new"), host(Arc::new(store.clone()), 1));
        slots::add(&env, &unlocked, &NewSecret { secret: &secret, cost, label: "" }).await.unwrap_err();
    }
    assert!(store.snapshot() == before);
}
