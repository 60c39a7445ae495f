/* Dispatch in one transaction: broker and state are one Redis database.

   A beat that leads plans what is due, and one script checks the lease and the records, pushes the messages, and
   writes the records and the log: all of it or none. Here are the things that can go wrong around that:

   - two beats; another one takes the lease at any moment; a beat dies and is started again;
   - a script is under way for any time: its beat gives up waiting (a lost answer), is frozen, or dies, and Redis
     executes the script after that, or never; the client library sends the same bytes twice;
   - a push fails (the queue's key has a wrong type, no memory);
   - Redis is started from a snapshot, queue and records together; Redis loses everything (FLUSHALL).

   Each of the K = 2 occurrences belongs to an entry of its own, so a script carries one record and one message for each.
   A worker takes messages off the queue (WORKER=0: there is none, the queue is judged alone).

   What must hold:

   - an occurrence stands in the queue once, as long as Redis keeps its data (`stood` is rolled back with the data);
   - a record that says RUN has its message, in the queue or taken by a worker: nothing is lost;
   - more than one run only for what ran in the stretch that was lost, and no run of what is recorded as missed;
   - in the end every occurrence is decided.

   Switches, each of which must break one of these:

   LEAVES_WHILE_BUILT    what is sent while messages are built leaves before its record
   SAME_TOKEN            an unanswered script is planned again without a new token
   MEMORY_WINS           memory overrides a store that went back together with its queue
   PUSH_BEFORE_CHECK     a script pushes before it has checked lease and records
   RECORD_BEFORE_PUSH    a script writes records before a push that can fail
   NO_UNDO               a script that fails half-way leaves what it has pushed
   ONLY_CONFLICTS        that a store went back is noticed by a conflict alone
   NO_COMPARE            a script checks the lease alone; breaks nothing but together with SAME_TOKEN

   SAME_TOKEN alone breaks something only when the store is lost: the records fence a late script as well as the
   token does, but an empty store has the record that this script expects.
*/
#define K 2
#ifndef BEATS
#define BEATS 2        /* or 1 */
#endif
#ifndef SLOTS
#define SLOTS 2        /* scripts that can be under way at once */
#endif
#ifndef STEALS
#define STEALS 1       /* take-overs from a beat that is alive */
#endif
#ifndef CRASHES
#define CRASHES 1
#endif
#ifndef LOSSES
#define LOSSES 1       /* answers that do not come */
#endif
#ifndef RESENDS
#define RESENDS 0      /* scripts that the client library sends twice */
#endif
#ifndef FAULTS
#define FAULTS 0       /* times that the queue refuses a push for a while */
#endif
#ifndef ROLLBACKS
#define ROLLBACKS 0
#endif
#ifndef FLUSHES
#define FLUSHES 0
#endif
#ifndef WORKER
#define WORKER 1
#endif

/* What a record says of its occurrence. FROM_NOW: planned from now after a cold start, so it is none any more. */
#define DUE 0
#define RUN 1
#define MISSED 2
#define FROM_NOW 3

#define NOBODY 0

/* A script: where it is, and what Redis answered. */
#define FREE 0
#define AWAITED 1
#define LATE 2         /* under way, and nobody waits for it */
#define ANSWERED 3
#define OK 1
#define FENCED 2
#define CONFLICT 3
#define FAILED 4

/* -- Redis ----------------------------------------------------------------------------------------------------- */
byte lease = NOBODY;
bool has_state = true;
byte record[K], queue[K];
byte stood[K];         /* ghost: how often a message was pushed, in the history that the data has */
bool refuses = false;  /* the queue of the last occurrence refuses a push */

byte old_lease; byte old_record[K], old_queue[K], old_stood[K], old_runs[K];
bool has_snapshot = false;
byte restarts = 0;     /* connections break, so that a beat notices */

typedef Script { byte where, token, answer; byte wanted[K] };
Script script[SLOTS];

/* -- ghosts and budgets ---------------------------------------------------------------------------------------- */
byte runs[K], excused[K];
bool flushed[K];
byte token[BEATS];     /* the lease that a beat believes to hold */
bool led[BEATS];       /* its memory is that of the last leader, as far as it knows */
typedef Memory { byte says[K] };
Memory memory[BEATS];
byte next_token = 1, steals = 0, crashes = 0, losses = 0, resends = 0, faults = 0, rollbacks = 0, flushes = 0;
bool fresh[K];         /* what the script that is being executed is to do */
byte i, j, b;          /* for loops inside of d_steps; these are as before after each */

#define HOLDER_LIVES (lease != NOBODY && (token[0] == lease || token[BEATS - 1] == lease))

inline push(o) { queue[o]++; stood[o]++ }
inline pop(o) { queue[o]--; stood[o]-- }

inline check() {
  for (i : 0 .. K - 1) {
    assert(stood[i] <= 1);
    assert(!(record[i] == RUN && !flushed[i]) || queue[i] + runs[i] >= 1);
    assert(runs[i] <= 1 + excused[i]);
    assert(record[i] != MISSED || runs[i] + queue[i] <= excused[i])
  }
  i = 0
}

/* The script, as Redis executes it: nothing comes between. */
inline execute(s) {
  script[s].answer = OK;
#ifdef PUSH_BEFORE_CHECK
  for (i : 0 .. K - 1) { if :: script[s].wanted[i] == RUN -> push(i) :: else fi }
#endif
  if :: lease != script[s].token -> script[s].answer = FENCED :: else fi;
#ifndef NO_COMPARE
  for (i : 0 .. K - 1) {
    if
    :: script[s].answer == OK && script[s].wanted[i] != DUE && record[i] != DUE && record[i] != script[s].wanted[i] ->
       script[s].answer = CONFLICT
    :: else
    fi
  }
#endif
  if
  :: script[s].answer == OK ->
     for (i : 0 .. K - 1) {
       fresh[i] = script[s].wanted[i] != DUE;
#ifndef NO_COMPARE
       /* What is in force already was done by an earlier copy: its push is not made again. */
       if :: record[i] != DUE -> fresh[i] = false :: else fi
#endif
     }
#ifdef RECORD_BEFORE_PUSH
     for (i : 0 .. K - 1) { if :: fresh[i] -> record[i] = script[s].wanted[i] :: else fi }
#endif
#if !defined(PUSH_BEFORE_CHECK) && !defined(LEAVES_WHILE_BUILT)
     for (i : 0 .. K - 1) {
       if
       :: fresh[i] && script[s].wanted[i] == RUN && i == K - 1 && refuses -> script[s].answer = FAILED
       :: fresh[i] && script[s].wanted[i] == RUN && !(i == K - 1 && refuses) -> push(i)
       :: else
       fi
     }
#ifndef NO_UNDO
     if
     :: script[s].answer == FAILED ->
        for (i : 0 .. K - 2) { if :: fresh[i] && script[s].wanted[i] == RUN -> pop(i) :: else fi }
     :: else
     fi
#endif
#endif
     for (i : 0 .. K - 1) {
       if :: script[s].answer == OK && fresh[i] -> record[i] = script[s].wanted[i] :: else fi;
       fresh[i] = false
     }
  :: else
  fi;
  i = 0;
  if
  :: script[s].where == AWAITED -> script[s].where = ANSWERED
  :: else -> forget(s)
  fi;
  check()
}

inline forget(s) {
  script[s].where = FREE; script[s].token = 0; script[s].answer = 0;
  for (j : 0 .. K - 1) { script[s].wanted[j] = DUE }
  j = 0
}

inline take_snapshot() {
  has_snapshot = true; old_lease = lease;
  for (i : 0 .. K - 1) {
    old_record[i] = record[i]; old_queue[i] = queue[i]; old_stood[i] = stood[i]; old_runs[i] = runs[i]
  }
  i = 0
}

inline roll_back() {
  rollbacks++; restarts++; lease = old_lease; has_snapshot = false; old_lease = 0;
  for (i : 0 .. K - 1) {
    excused[i] = excused[i] + runs[i] - old_runs[i];
    record[i] = old_record[i]; queue[i] = old_queue[i]; stood[i] = old_stood[i];
    old_record[i] = 0; old_queue[i] = 0; old_stood[i] = 0; old_runs[i] = 0
  }
  i = 0;
  check()
}

/* What ran, and what a beat that may restore the store does not know of, may run again. */
inline lose_everything() {
  flushes++; restarts++; lease = NOBODY; has_state = false;
  for (i : 0 .. K - 1) {
    for (b : 0 .. BEATS - 1) {
      if :: led[b] && memory[b].says[i] != record[i] && runs[i] > 0 -> excused[i]++ :: else fi
    }
    b = 0;
    flushed[i] = true; record[i] = DUE; queue[i] = 0; stood[i] = 0
  }
  i = 0
}

active proctype Redis() {
end:
  do
  :: d_step { (script[0].where == AWAITED || script[0].where == LATE) -> execute(0) }
  :: d_step { (script[1].where == AWAITED || script[1].where == LATE) -> execute(1) }
#if SLOTS > 2
  :: d_step { (script[2].where == AWAITED || script[2].where == LATE) -> execute(2) }
#endif
  /* The connection is cut before Redis has read it. */
  :: d_step { script[0].where == LATE -> forget(0) }
  :: d_step { script[1].where == LATE -> forget(1) }
#if RESENDS > 0
  /* The answer is lost, and the client library sends the same bytes again. */
  :: d_step { script[0].where == ANSWERED && resends < RESENDS -> resends++; script[0].where = AWAITED }
#endif
#if FAULTS > 0
  :: d_step { !refuses && faults < FAULTS -> faults++; refuses = true }
  :: d_step { refuses -> refuses = false }
#endif
#if ROLLBACKS > 0
  :: d_step { has_state && !has_snapshot && rollbacks < ROLLBACKS -> take_snapshot() }
  :: d_step { has_snapshot -> roll_back() }
#endif
#if FLUSHES > 0
  :: d_step { has_state && flushes < FLUSHES -> lose_everything() }
#endif
#if WORKER
  :: d_step { queue[0] > 0 -> queue[0]--; runs[0]++; check() }
  :: d_step { queue[K - 1] > 0 -> queue[K - 1]--; runs[K - 1]++; check() }
#endif
  od
}

/* -- beat ------------------------------------------------------------------------------------------------------ */

inline new_token() {
#ifdef SAME_TOKEN
  if :: own == NOBODY -> own = next_token; next_token++ :: else fi;
  token[me] = own
#else
  token[me] = next_token; next_token++
#endif
  lease = token[me]
}

inline die() {
  crashes++; token[me] = NOBODY; led[me] = false; seen = 0; choice = 0;
#ifdef SAME_TOKEN
  own = NOBODY;
#endif
  if :: slot < SLOTS && script[slot].where == AWAITED -> script[slot].where = LATE
     :: slot < SLOTS && script[slot].where == ANSWERED -> forget(slot)
     :: else
  fi;
  slot = SLOTS;
  for (i : 0 .. K - 1) { memory[me].says[i] = DUE }
  i = 0
}

#define MAY_DIE crashes < CRASHES
#define ALL_DECIDED (memory[me].says[0] != DUE && memory[me].says[K - 1] != DUE)
#ifdef ONLY_CONFLICTS
#define NOTICED false
#else
#define NOTICED (seen != restarts)
#endif

inline plan(o) {
  if
  :: memory[me].says[o] == DUE -> if :: choice = DUE :: choice = RUN :: choice = MISSED fi
  :: else -> choice = DUE
  fi;
  script[slot].wanted[o] = choice;
#ifdef LEAVES_WHILE_BUILT
  if :: choice == RUN -> push(o) :: else fi;
#endif
  choice = 0
}

proctype Beat(byte me) {
  byte slot = SLOTS, choice = 0, seen = 0;
#ifdef SAME_TOKEN
  byte own = NOBODY;
#endif

end_standing_by:
  if
  :: d_step {
       (!HOLDER_LIVES || steals < STEALS) ->
       if :: HOLDER_LIVES -> steals++ :: else fi;
       new_token()
     }
  fi;

reading:
  if
  :: d_step { MAY_DIE -> die() } goto end_standing_by
  :: true
  fi;
  d_step {
    seen = restarts;
    if
    :: has_state ->
#ifdef MEMORY_WINS
       for (i : 0 .. K - 1) {
         if
         :: lease == token[me] && led[me] && record[i] == DUE -> record[i] = memory[me].says[i]
         :: else
         fi
       }
       i = 0;
       check();
#endif
       for (i : 0 .. K - 1) { memory[me].says[i] = record[i] }
       led[me] = true
    :: else
    fi;
    i = 0
  }
  if
  :: d_step { MAY_DIE -> die() } goto end_standing_by
  /* The store was lost: a beat that has led restores it from memory, any other one plans from now. */
  :: d_step {
       !has_state ->
       if
       :: lease == token[me] ->
          for (i : 0 .. K - 1) {
            if
            :: !led[me] -> record[i] = FROM_NOW
            /* Its own script that comes now is told by its token, not by the record. */
            :: led[me] && record[i] == DUE -> record[i] = memory[me].says[i]
            :: else
            fi;
            memory[me].says[i] = record[i]
          }
          i = 0;
          has_state = true; led[me] = true;
          check()
       :: else -> token[me] = NOBODY
       fi
     }
     if :: token[me] == NOBODY -> led[me] = false; goto end_standing_by :: else fi
  :: has_state
  fi;

planning:
  if
  :: d_step { MAY_DIE -> die() } goto end_standing_by
  :: NOTICED -> goto settling
  :: !ALL_DECIDED && !NOTICED ->
     atomic {
       if
       :: script[0].where == FREE -> slot = 0
       :: script[0].where != FREE && script[1].where == FREE -> slot = 1
#if SLOTS > 2
       :: script[0].where != FREE && script[1].where != FREE && script[2].where == FREE -> slot = 2
#endif
       fi;
       plan(0);
       plan(1);
       if
       :: script[slot].wanted[0] == DUE && script[slot].wanted[1] == DUE -> slot = SLOTS; goto planning
       :: else -> script[slot].where = AWAITED; script[slot].token = token[me]
       fi
     }
  :: ALL_DECIDED && !NOTICED ->
     /* Nothing is due. A beat that has lost its lease finds out at its renewal. */
end_idle:
     if
     :: NOTICED -> goto settling
     :: d_step { lease != token[me] -> token[me] = NOBODY; led[me] = false } goto end_standing_by
     :: d_step { MAY_DIE -> die() } goto end_standing_by
     fi
  fi;

  if
  :: d_step {
       script[slot].where == ANSWERED ->
       choice = script[slot].answer;
       if
       :: choice == OK ->
          for (i : 0 .. K - 1) {
            if :: script[slot].wanted[i] != DUE -> memory[me].says[i] = script[slot].wanted[i] :: else fi
          }
          i = 0
       :: else
       fi;
       forget(slot); slot = SLOTS
     }
     if
     :: choice == OK || choice == FAILED -> choice = 0; goto planning
     :: else -> choice = 0; goto settling
     fi
  :: d_step { losses < LOSSES && script[slot].where != ANSWERED -> losses++; script[slot].where = LATE; slot = SLOTS }
  :: d_step { losses < LOSSES && script[slot].where == ANSWERED -> losses++; forget(slot); slot = SLOTS }
  :: d_step { MAY_DIE -> die() } goto end_standing_by
  fi;

settling:
  /* The lease is taken again, under a new token, and then the records are read. */
  if
  :: d_step { lease == token[me] || !HOLDER_LIVES -> new_token() }
     goto reading
  :: d_step { lease != token[me] && HOLDER_LIVES -> token[me] = NOBODY; led[me] = false } goto end_standing_by
  fi
}

init {
  atomic {
    for (b : 0 .. BEATS - 1) { run Beat(b) }
    b = 0
  }
  timeout;
  d_step {
    for (i : 0 .. K - 1) { assert(record[i] != DUE) }
    i = 0
  }
}
