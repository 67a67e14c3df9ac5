use super::*;
use futures_util::FutureExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::VecDeque;

fn pool(id: usize) -> Arc<Member> {
    Member::new(PoolId(id), None)
}

/// Joins the queue and finds nothing.
fn asleep(gate: &Arc<Gate>, pool: &Arc<Member>) -> Ticket {
    let ticket = gate.enqueue(pool);
    if ticket.is_trying() {
        ticket.sleep();
    }
    ticket
}

/// Takes the call, if it was called.
fn is_called(ticket: &Ticket) -> bool {
    ticket.called().now_or_never().is_some()
}

fn give_back(gate: &Gate, pool: &Arc<Member>) {
    pool.idle_comes();
    gate.returned(pool);
}

/// As `Pool::attempt`: an idle backend, or a new one.
enum Taken {
    Idle,
    New(Permit),
}

fn attempt(gate: &Arc<Gate>, pool: &Arc<Member>) -> Option<Taken> {
    if pool.idle() > 0 {
        pool.idle_gone(1);
        return Some(Taken::Idle);
    }
    gate.try_permit(pool).ok().map(Taken::New)
}

#[tokio::test]
async fn never_more_permits_than_the_limit() {
    let (gate, a) = (Gate::new(Some(2)), pool(1));
    let first = gate.try_permit(&a).unwrap();
    let _second = gate.try_permit(&a).unwrap();
    assert_eq!(gate.try_permit(&a).unwrap_err(), Refusal::Bound);
    drop(first);
    assert!(gate.try_permit(&a).is_ok());
}

#[tokio::test]
async fn never_more_permits_of_a_pool_than_its_cap() {
    let (gate, a, b) = (Gate::new(Some(2)), Member::new(PoolId(1), Some(1)), pool(2));
    let permit = gate.try_permit(&a).unwrap();
    assert!(gate.try_permit(&a).is_err());
    let (capped, other) = (asleep(&gate, &a), asleep(&gate, &b));
    let more = gate.try_permit(&b).unwrap();
    drop(more);
    assert_eq!([is_called(&capped), is_called(&other)], [false, true]);
    drop(permit);
    assert!(is_called(&capped));
}

#[tokio::test]
async fn one_connection_asks_for_the_limit() {
    let (gate, a) = (Gate::new(None), pool(1));
    let _first = gate.try_permit(&a).unwrap();
    assert!(gate.try_permit(&a).is_err());
    let waiters = [(); 3].map(|()| asleep(&gate, &a));
    let trying = gate.enqueue(&pool(2));
    gate.set_limit(3);
    assert_eq!(waiters.each_ref().map(is_called), [true, true, false]);
    trying.sleep();
    assert!(is_called(&trying), "it has failed by the old bound");
}

#[tokio::test(start_paused = true)]
async fn first_come_first_served() {
    let (gate, a) = (Gate::new(Some(1)), pool(1));
    let permit = gate.try_permit(&a).unwrap();
    let (one, two) = (asleep(&gate, &a), asleep(&gate, &a));
    assert!(!is_called(&one));
    drop(permit);
    assert!(!gate.enqueue(&a).is_trying(), "it must not overtake");
    assert_eq!([is_called(&one), is_called(&two)], [true, false]);
    drop(one);
    assert!(is_called(&two));
}

#[tokio::test(start_paused = true)]
async fn a_returned_backend_goes_to_its_own_pool_until_the_head_loses_patience() {
    let (gate, a, b) = (Gate::new(Some(1)), pool(1), pool(2));
    let _permit = gate.try_permit(&a).unwrap();
    let other = asleep(&gate, &b);
    let (own, second) = (asleep(&gate, &a), asleep(&gate, &a));
    give_back(&gate, &a);
    assert_eq!([is_called(&other), is_called(&own)], [false, true]);
    tokio::time::advance(PATIENCE * 2).await;
    give_back(&gate, &a);
    assert_eq!([is_called(&other), is_called(&second)], [true, false]);
    // While room is made for it, what else comes back is not closed for it too.
    let _eviction = other.try_evict().unwrap();
    other.sleep();
    give_back(&gate, &a);
    assert_eq!([is_called(&other), is_called(&second)], [false, true]);
}

#[tokio::test]
async fn what_comes_free_during_a_try_is_not_missed() {
    let (gate, a) = (Gate::new(Some(1)), pool(1));
    let _permit = gate.try_permit(&a).unwrap();
    let ticket = asleep(&gate, &a);
    gate.returned(&a);
    assert!(is_called(&ticket));
    // It has looked and found nothing; before it sleeps one comes back.
    give_back(&gate, &a);
    ticket.sleep();
    assert!(is_called(&ticket));
    ticket.sleep();
    assert!(!is_called(&ticket), "no more than once");
}

#[tokio::test]
async fn what_comes_free_during_a_long_try_goes_to_the_next() {
    let (gate, a) = (Gate::new(Some(2)), pool(1));
    let _permit = gate.try_permit(&a).unwrap();
    let connecting = gate.enqueue(&a);
    let _making = gate.try_permit(&a).unwrap();
    let second = gate.enqueue(&a);
    assert!(second.is_trying());
    second.sleep();
    give_back(&gate, &a);
    assert!(is_called(&second));
    drop(connecting);
}

#[tokio::test]
async fn a_call_that_cannot_be_used_is_passed_to_another_pool() {
    let (gate, a, b, c) = (Gate::new(Some(1)), pool(1), pool(2), pool(3));
    let _permit = gate.try_permit(&a).unwrap();
    let (one, same, two) = (asleep(&gate, &b), asleep(&gate, &b), asleep(&gate, &c));
    give_back(&gate, &a);
    assert!(is_called(&one));
    one.sleep();
    assert_eq!(
        [is_called(&one), is_called(&same), is_called(&two)],
        [false, false, true]
    );
    drop(two);
    assert!(is_called(&one), "what nobody used goes back to the head");
}

#[tokio::test]
async fn served_without_a_call_it_still_offers_what_is_left() {
    let (gate, a) = (Gate::new(Some(3)), pool(1));
    let _permits = [(); 3].map(|()| gate.try_permit(&a).unwrap());
    let first = gate.enqueue(&a);
    give_back(&gate, &a);
    give_back(&gate, &a);
    // The second has looked before these came back.
    let second = Ticket {
        gate: gate.clone(),
        waiter: gate.enqueue(&a).waiter.clone(),
    };
    gate.set_waiting(&mut gate.lock(), 1);
    gate.lock().sleep(&second.waiter);
    assert!(matches!(attempt(&gate, &a), Some(Taken::Idle)));
    drop(first);
    assert!(is_called(&second));
}

#[tokio::test(start_paused = true)]
async fn a_call_not_taken_is_passed_on() {
    let (gate, a, b) = (Gate::new(Some(1)), pool(1), pool(2));
    let _permit = gate.try_permit(&a).unwrap();
    let (one, two) = (asleep(&gate, &b), asleep(&gate, &a));
    tokio::time::advance(PATIENCE * 2).await;
    give_back(&gate, &a);
    drop(one);
    assert!(is_called(&two));
}

#[tokio::test]
async fn no_more_evictions_than_waiters_and_one_for_each() {
    let (gate, a) = (Gate::new(Some(1)), pool(1));
    let (one, two) = (asleep(&gate, &a), asleep(&gate, &a));
    let eviction = one.try_evict().unwrap();
    assert!(one.try_evict().is_none());
    drop(one);
    assert!(two.try_evict().is_none(), "that one will do for it");
    drop(eviction);
    assert!(is_called(&two), "now it may");
    two.sleep();
    two.try_evict().unwrap().unused();
    assert!(!is_called(&two));
}

#[tokio::test(start_paused = true)]
async fn a_full_server_is_tried_again_by_one_at_a_time() {
    let (gate, a, b) = (Gate::new(Some(9)), pool(1), pool(2));
    let _ours = gate.try_permit(&a).unwrap();
    let refused = gate.try_permit(&a).unwrap();
    gate.server_is_full(&a);
    assert_eq!(gate.try_permit(&a).unwrap_err(), Refusal::ServerFull);
    assert!(
        gate.try_permit(&b).is_ok(),
        "it may be the role that is full"
    );
    let one = gate.enqueue(&a);
    let probe = gate.probe(&a).unwrap();
    one.sleep();
    let two = asleep(&gate, &a);
    assert!(gate.probe(&a).is_none());
    drop(refused);
    assert_eq!([is_called(&one), is_called(&two)], [false, false]);
    // One of ours comes back while it waits: it is served, and the duty goes to the next.
    give_back(&gate, &a);
    assert!(one.called_or_due(Some(&probe)).now_or_never().is_some());
    a.idle_gone(1);
    drop((one, probe));
    assert!(is_called(&two));
    let probe = gate.probe(&a).unwrap();
    two.sleep();
    let since = Instant::now();
    two.called_or_due(Some(&probe)).await;
    assert_eq!(since.elapsed(), SERVER_FULL_PAUSE);
    let _new = gate.try_permit(&a).unwrap();
    assert_eq!(gate.try_permit(&a).unwrap_err(), Refusal::ServerFull);
    gate.server_accepts(&a);
    assert!(gate.try_permit(&a).is_ok());
}

/// 5,000 wait for 20 backends: each transaction wakes one, and costs little.
#[tokio::test]
async fn a_long_queue_costs_no_more_than_a_short_one() {
    const WAITERS: usize = 5_000;
    const SERVED: usize = 50_000;
    for pools in [1, 50, WAITERS] {
        let members: Vec<_> = (0..pools).map(pool).collect();
        let gate = Gate::new(Some(20));
        let mut lent: VecDeque<(Arc<Member>, Permit)> = (0..20)
            .map(|n| &members[n % pools])
            .map(|member| (member.clone(), gate.try_permit(member).unwrap()))
            .collect();
        let mut queue: VecDeque<Ticket> = (0..WAITERS)
            .map(|n| asleep(&gate, &members[n % pools]))
            .collect();
        let since = std::time::Instant::now();
        let mut calls = 0;
        for _ in 0..SERVED {
            // The backend that has been lent longest ends: where all are of one pool it comes back, else it closes.
            let (member, permit) = lent.pop_front().unwrap();
            let permit = if pools == 1 {
                give_back(&gate, &member);
                Some(permit)
            } else {
                drop(permit);
                None
            };
            let head = queue.pop_front().unwrap();
            assert!(is_called(&head));
            calls += 1;
            let member = head.waiter.pool.clone();
            let new = match attempt(&gate, &member) {
                Some(Taken::New(new)) => new,
                Some(Taken::Idle) => permit.unwrap(),
                None => panic!("called for nothing"),
            };
            drop(head);
            lent.push_back((member.clone(), new));
            calls += usize::from(is_called(queue.front().unwrap()));
            queue.push_back(asleep(&gate, &member));
        }
        let each = since.elapsed() / SERVED as u32;
        println!("{pools} pools: {calls} calls for {SERVED} served, {each:?} each");
        assert_eq!(calls, SERVED);
        // An unoptimized build on a busy machine; optimized it is about a microsecond.
        assert!(each < Duration::from_micros(200), "{each:?}");
    }
}

/// Anybody does anything in any order; whenever nobody is called or trying, nobody may sleep beside something free.
#[tokio::test(start_paused = true)]
async fn nobody_sleeps_beside_something_free() {
    for seed in 0..300 {
        Model::new(seed).run().await;
    }
}

struct Model {
    random: StdRng,
    gate: Arc<Gate>,
    pools: Vec<Arc<Member>>,
    limit: usize,
    tickets: Vec<Ticket>,
    /// Lent or idle: a permit is a backend, and which of a pool is which does not matter.
    permits: Vec<Permit>,
    lent: Vec<Arc<Member>>,
    /// Permits of backends being evicted.
    closing: Vec<(Permit, Eviction)>,
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let limit = random.random_range(1..=4);
        let caps = [None, None, Some(1), Some(2)];
        let pools = random.random_range(1..=4);
        Self {
            gate: Gate::new(Some(limit)),
            pools: (0..pools)
                .map(|id| Member::new(PoolId(id), caps[random.random_range(0..4)]))
                .collect(),
            limit,
            tickets: Vec::new(),
            permits: Vec::new(),
            lent: Vec::new(),
            closing: Vec::new(),
            random,
        }
    }

    async fn run(&mut self) {
        for _ in 0..400 {
            self.step().await;
            assert!(self.gate.used() <= self.limit.max(4));
            self.nobody_is_forgotten();
        }
        // Everything comes back, nobody new comes: everybody is served.
        for _ in 0..2_000 {
            self.closing.clear();
            if let Some(member) = self.lent.pop() {
                give_back(&self.gate, &member);
            }
            while self.try_one() {}
            if self.tickets.is_empty() {
                break;
            }
        }
        assert!(self.tickets.is_empty());
        self.closing.clear();
        self.permits.clear();
        let state = self.gate.lock();
        assert_eq!((state.used, state.waiting, state.evicting), (0, 0, 0));
        assert_eq!(state.called_to_room, 0);
        assert!(state.queues.is_empty() && state.heads.is_empty());
    }

    async fn step(&mut self) {
        let pool = self.pools[self.random.random_range(0..self.pools.len())].clone();
        match self.random.random_range(0..100) {
            0..30 if self.tickets.len() < 12 => self.tickets.push(self.gate.enqueue(&pool)),
            30..55 => {
                self.try_one();
            }
            55..75 if !self.lent.is_empty() => {
                let index = self.random.random_range(0..self.lent.len());
                give_back(&self.gate, &self.lent.swap_remove(index));
            }
            75..80 if !self.lent.is_empty() => {
                let index = self.random.random_range(0..self.lent.len());
                let member = self.lent.swap_remove(index);
                drop(self.permit_of(&member));
            }
            80..86 if !self.tickets.is_empty() => {
                let index = self.random.random_range(0..self.tickets.len());
                drop(self.tickets.swap_remove(index));
            }
            86..92 if !self.closing.is_empty() => drop(self.closing.swap_remove(0)),
            92..94 => {
                self.limit = self.random.random_range(1..=4);
                self.gate.set_limit(self.limit);
            }
            94..97 => tokio::time::advance(PATIENCE).await,
            // Not through the queue, as a borrow when nobody waits.
            97.. if !self.gate.has_waiters() => self.take(&pool),
            _ => {}
        }
    }

    fn permit_of(&mut self, member: &Arc<Member>) -> Permit {
        let mut permits = self.permits.iter();
        let index = permits.position(|permit| Arc::ptr_eq(&permit.pool, member));
        self.permits.swap_remove(index.unwrap())
    }

    fn take(&mut self, pool: &Arc<Member>) {
        let taken = attempt(&self.gate, pool);
        if taken.is_some() {
            self.lent.push(pool.clone());
        }
        if let Some(Taken::New(permit)) = taken {
            self.permits.push(permit);
        }
    }

    /// Somebody who is called or trying does one step: tries, or, having tried in vain, sleeps.
    fn try_one(&mut self) -> bool {
        let ready = |ticket: &Ticket| ticket.waiter.now().phase != Phase::Sleeping;
        let ready: Vec<usize> = (0..self.tickets.len())
            .filter(|index| ready(&self.tickets[*index]))
            .collect();
        if ready.is_empty() {
            return false;
        }
        let index = ready[self.random.random_range(0..ready.len())];
        let ticket = &self.tickets[index];
        let pool = ticket.waiter.pool.clone();
        let _ = is_called(ticket);
        let before = self.lent.len();
        self.take(&pool);
        if self.lent.len() > before {
            drop(self.tickets.swap_remove(index));
            return true;
        }
        self.evict_for(index);
        // Between the try and the sleep anything may happen.
        if self.random.random_bool(0.5)
            && let Some(member) = self.lent.pop()
        {
            give_back(&self.gate, &member);
        }
        self.tickets[index].sleep();
        true
    }

    fn evict_for(&mut self, index: usize) {
        let ticket = &self.tickets[index];
        let Some(eviction) = ticket.try_evict() else {
            return;
        };
        let own = ticket.waiter.pool.id;
        let mut pools = self.pools.iter();
        let Some(richest) = pools.find(|pool| pool.id != own && pool.idle() > 0) else {
            return eviction.unused();
        };
        let richest = richest.clone();
        richest.idle_gone(1);
        let permit = self.permit_of(&richest);
        self.closing.push((permit, eviction));
    }

    fn nobody_is_forgotten(&self) {
        let busy = |ticket: &Ticket| ticket.waiter.now().phase != Phase::Sleeping;
        if self.tickets.iter().any(busy) {
            return;
        }
        let room = self.gate.used() < self.limit;
        // The end of an eviction calls the next to evict.
        let moving = !self.closing.is_empty();
        for ticket in &self.tickets {
            let pool = &ticket.waiter.pool;
            assert_eq!(pool.idle(), 0, "idle beside a sleeper");
            assert!(!room || !pool.has_room(), "room beside a sleeper");
            let idle: usize = self.pools.iter().map(|pool| pool.idle()).sum();
            let may = pool.has_room() && ticket.try_evict().map(Eviction::unused).is_some();
            assert!(
                moving || idle == 0 || !may,
                "something to evict beside a sleeper"
            );
        }
    }
}
