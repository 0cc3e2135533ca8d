//! The memory ledger: what engines may take of the machine together, and who goes when another needs room.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::engine::provision::Need;

/// Between two looks for somebody who became idle, when nobody says so.
const LOOK: Duration = Duration::from_millis(100);

/// What the machine has for engines, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// RAM.
    pub ram: u64,
    /// Memory of each GPU, by its index.
    pub vram: BTreeMap<u32, u64>,
}

impl Budget {
    /// True when all of this fits at the same time.
    pub fn holds<'a>(&self, needs: impl IntoIterator<Item = &'a Need>) -> bool {
        let mut left = self.clone();
        needs.into_iter().all(|need| left.take(need))
    }

    /// Takes away what somebody else uses of it, as far as there is as much.
    pub(crate) fn lessen(&mut self, need: &Need) {
        self.ram = self.ram.saturating_sub(need.ram);
        for (device, bytes) in &need.vram {
            if let Some(free) = self.vram.get_mut(device) {
                *free = free.saturating_sub(*bytes);
            }
        }
    }

    /// Takes a need away; false when there is not as much.
    fn take(&mut self, need: &Need) -> bool {
        let mut left = self.clone();
        let Some(ram) = left.ram.checked_sub(need.ram) else {
            return false;
        };
        left.ram = ram;
        for (device, bytes) in &need.vram {
            let Some(free) = left.vram.get_mut(device) else {
                return *bytes == 0;
            };
            match free.checked_sub(*bytes) {
                Some(rest) => *free = rest,
                None => return false,
            }
        }
        *self = left;
        true
    }
}

/// Who has memory booked.
pub trait Resident: Send + Sync {
    /// Its name in messages.
    fn name(&self) -> &str;

    /// Since when nobody has used it; none while somebody does.
    fn unused_since(&self) -> Option<Instant>;
}

/// One ledger for all engines that share a machine. Clones share it.
#[derive(Clone, Debug)]
pub struct MemoryLedger(Arc<Ledger>);

#[derive(Debug)]
struct Ledger {
    budget: Budget,
    books: Mutex<Books>,
    freed: Notify,
    /// Held while a model is loaded into this process, so that what it takes can be told.
    #[cfg(feature = "embedded")]
    loading: Mutex<()>,
}

#[derive(Debug, Default)]
struct Books {
    next: u64,
    booked: BTreeMap<u64, Entry>,
}

struct Entry {
    need: Need,
    resident: Weak<dyn Resident>,
    /// Asked to make room for this engine.
    evict: Arc<Eviction>,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({:?})", self.need)
    }
}

/// The wish that a server makes room.
#[derive(Debug, Default)]
pub(in crate::engine) struct Eviction {
    told: Notify,
    /// For whom.
    by: Mutex<Option<String>>,
}

impl Eviction {
    fn ask(&self, by: &str) {
        *lock(&self.by) = Some(by.to_owned());
        self.told.notify_one();
    }

    /// Waits until somebody needs the room; who.
    pub(in crate::engine) async fn asked(&self) -> String {
        loop {
            self.told.notified().await;
            if let Some(by) = lock(&self.by).take() {
                return by;
            }
        }
    }
}

/// Memory that is taken. Dropping it gives it back.
#[derive(Debug)]
pub(in crate::engine) struct Booking {
    ledger: MemoryLedger,
    id: u64,
    pub(super) evict: Arc<Eviction>,
}

#[cfg(feature = "embedded")]
impl Booking {
    /// Tells when others need the room.
    pub(in crate::engine) fn eviction(&self) -> Arc<Eviction> {
        Arc::clone(&self.evict)
    }

    /// Held while a model is loaded: one at a time, else nobody knows what each of them takes.
    pub(in crate::engine) fn loading(&self) -> MutexGuard<'_, ()> {
        lock(&self.ledger.0.loading)
    }

    /// Corrects an estimate by what was measured when the model was loaded. Only upwards: what it will work with is in the
    /// estimate and not yet in the measure.
    pub(in crate::engine) fn correct(&self, estimate: &Need, measured: u64) {
        if let Some(entry) = lock(&self.ledger.0.books).booked.get_mut(&self.id) {
            entry.need.ram = measured.max(estimate.ram);
        }
        self.ledger.0.freed.notify_waiters();
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        lock(&self.ledger.0.books).booked.remove(&self.id);
        self.ledger.0.freed.notify_waiters();
    }
}

impl MemoryLedger {
    /// An empty ledger.
    pub fn new(budget: Budget) -> Self {
        Self(Arc::new(Ledger {
            budget,
            books: Mutex::default(),
            freed: Notify::new(),
            #[cfg(feature = "embedded")]
            loading: Mutex::default(),
        }))
    }

    /// What there is in all.
    pub fn budget(&self) -> &Budget {
        &self.0.budget
    }

    /// What is taken now: RAM, and memory of each GPU, in bytes.
    pub fn booked(&self) -> Need {
        let mut sum = Need::default();
        let mut vram: BTreeMap<u32, u64> = BTreeMap::new();
        for entry in lock(&self.0.books).booked.values() {
            sum.ram += entry.need.ram;
            for (device, bytes) in &entry.need.vram {
                *vram.entry(*device).or_default() += bytes;
            }
        }
        sum.vram = vram.into_iter().collect();
        sum
    }

    /// Waits until there is room, for which idle engines are asked to go, the one that was used longest ago first;
    /// none if there never will be.
    pub(in crate::engine) async fn book(&self, resident: &Arc<dyn Resident>, need: &Need) -> Option<Booking> {
        if !self.0.budget.holds([need]) {
            return None;
        }
        loop {
            let freed = self.0.freed.notified();
            if let Some(booking) = self.try_book(resident, need) {
                return Some(booking);
            }
            self.make_room(resident);
            let _looked = tokio::time::timeout(LOOK, freed).await;
        }
    }

    /// The same, if there is room now.
    pub(in crate::engine) fn try_book(&self, resident: &Arc<dyn Resident>, need: &Need) -> Option<Booking> {
        let mut books = lock(&self.0.books);
        let taken = books.booked.values().map(|entry| &entry.need);
        if !self.0.budget.holds(taken.chain([need])) {
            return None;
        }
        let id = books.next;
        books.next += 1;
        let evict = Arc::<Eviction>::default();
        let entry = Entry {
            need: need.clone(),
            resident: Arc::downgrade(resident),
            evict: Arc::clone(&evict),
        };
        books.booked.insert(id, entry);
        Some(Booking {
            ledger: self.clone(),
            id,
            evict,
        })
    }

    /// Asks every engine that nobody uses to go.
    pub(super) fn flush(&self) {
        for evict in lock(&self.0.books).booked.values().map(|entry| &entry.evict) {
            evict.ask("a flush");
        }
    }

    /// Asks the engine that nobody uses, and that was used longest ago, to go; all servers of it.
    fn make_room(&self, wanting: &Arc<dyn Resident>) {
        let residents: Vec<(Arc<dyn Resident>, Arc<Eviction>)> = lock(&self.0.books)
            .booked
            .values()
            .filter_map(|entry| Some((entry.resident.upgrade()?, Arc::clone(&entry.evict))))
            .filter(|(resident, _)| !same(resident, wanting))
            .collect();
        // Residents have locks of their own: not under that of the books.
        let idle = residents
            .iter()
            .filter_map(|(resident, evict)| Some((resident.unused_since()?, resident, evict)));
        let Some((_, oldest, _)) = idle.min_by_key(|(since, ..)| *since) else {
            return;
        };
        for (resident, evict) in &residents {
            if same(resident, oldest) {
                evict.ask(wanting.name());
            }
        }
    }
}

/// Whether two are the same one.
fn same(a: &Arc<dyn Resident>, b: &Arc<dyn Resident>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
