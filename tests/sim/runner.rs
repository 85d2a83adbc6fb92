//! Runs the histories of many seeds, on all processors, and shows the one that failed.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, Once,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::world::history;

/// Which histories to run.
#[derive(Clone, Copy, Debug)]
pub struct Seeds {
    first: u64,
    count: u64,
    time: Option<Duration>,
}

impl Seeds {
    /// `S3BD_SIM_SEED` alone, or `S3BD_SIM_SEEDS` of them, or as many as fit into `S3BD_SIM_SECONDS`, from one that is
    /// drawn.
    pub fn from_environment(count: u64) -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number: {text}")))
        };
        if let Some(seed) = number("S3BD_SIM_SEED") {
            return Self { first: seed, count: 1, time: None };
        }
        match number("S3BD_SIM_SECONDS") {
            Some(seconds) => {
                let first = getrandom::u64().expect("randomness") >> 16;
                Self { first, count: u64::MAX, time: Some(Duration::from_secs(seconds)) }
            }
            None => Self { first: 0, count: number("S3BD_SIM_SEEDS").unwrap_or(count), time: None },
        }
    }
}

/// What happened in all of them.
#[derive(Default)]
pub struct Counts {
    pub histories: u64,
    pub events: BTreeMap<&'static str, u64>,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} histories", self.histories)?;
        self.events.iter().try_for_each(|(event, count)| write!(f, "; {event} {count}"))
    }
}

/// One history.
pub struct Ran {
    pub trace: Vec<String>,
    pub events: BTreeMap<&'static str, u64>,
    /// Why it failed.
    pub failure: Option<String>,
}

thread_local! {
    /// The first panic of the history that this thread runs, in whatever task.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

fn catch_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let inside = RUNNING.with(|running| *running.borrow());
            if !inside {
                return before(panic);
            }
            PANIC.with(|first| first.borrow_mut().get_or_insert_with(|| panic.to_string()).len());
        }));
    });
}

thread_local! {
    static RUNNING: RefCell<bool> = const { RefCell::new(false) };
}

/// Runs the history of one seed, in a runtime whose clock is paused.
pub fn run_seed(seed: u64) -> Ran {
    catch_panics();
    RUNNING.with(|running| *running.borrow_mut() = true);
    let trace = Arc::new(Mutex::new(Vec::new()));
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
    let run = AssertUnwindSafe(|| runtime.block_on(history(seed, Arc::clone(&trace))));
    let events = std::panic::catch_unwind(run).ok();
    drop(runtime);
    RUNNING.with(|running| *running.borrow_mut() = false);
    let failure = PANIC.with(|panic| panic.borrow_mut().take());
    let trace = trace.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    Ran { trace, events: events.unwrap_or_default(), failure }
}

/// Runs all of them; panics with the trace of the first that fails.
pub fn run(seeds: Seeds) -> Counts {
    let next = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let failed: Mutex<Option<(u64, Ran)>> = Mutex::default();
    let counts: Mutex<Counts> = Mutex::default();
    #[allow(clippy::disallowed_methods, reason = "how long the run itself may take")]
    let started = std::time::Instant::now();
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let late = seeds.time.is_some_and(|time| started.elapsed() >= time);
            if at >= seeds.count || late || over.load(Ordering::Relaxed) {
                return;
            }
            let seed = seeds.first.wrapping_add(at);
            let ran = run_seed(seed);
            if ran.failure.is_some() {
                over.store(true, Ordering::Relaxed);
                let mut failed = failed.lock().unwrap();
                if failed.as_ref().is_none_or(|(other, _)| seed < *other) {
                    *failed = Some((seed, ran));
                }
                return;
            }
            let mut counts = counts.lock().unwrap();
            counts.histories += 1;
            for (event, count) in ran.events {
                *counts.events.entry(event).or_default() += count;
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    if let Some((seed, ran)) = failed.into_inner().unwrap() {
        let why = ran.failure.unwrap_or_default();
        panic!("\n{}\n\nS3BD_SIM_SEED={seed} repeats it: {why}", ran.trace.join("\n"));
    }
    counts.into_inner().unwrap()
}
