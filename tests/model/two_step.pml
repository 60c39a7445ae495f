/* Dispatch in two steps: the broker is another one than the Redis that holds the state.

   A beat that leads claims an occurrence (its record has an intent), publishes the message, and acknowledges: takes
   the intent out. The next leader publishes what is claimed and not acknowledged. So a message may stand in the queue
   twice; the worker's register, which is written once, lets one of them run. What has had an intent becomes missed
   through its register alone. A worker may give a late message up: it closes the register, and records the miss unless
   there is an intent; then it leaves the run to beat, and the intent may not be taken out.

   One occurrence; two beats; deaths at any point; a lease that is taken over at any moment; answers that do not come,
   of scripts and of the broker; scripts that are executed late; workers that are; a store that goes back while its
   leader lives.

   What a worker leaves to beat is not covered where a store goes back between its look and the beat's (LATE=0).

   What must hold: it does not run twice, it does not run and count as missed, and in the end it has run, or is missed.

   Switches, each of which must break one of these:

   NO_GUARD                  workers do not ask the register
   PUBLISH_BEFORE_CLAIM      the message is sent, then the record is written
   ACK_BEFORE_PUBLISH        the intent is taken out, then the message is sent
   MISSED_WITHOUT_REGISTER   a claimed occurrence is given up without its register
   UNFENCED_REGISTER         a register is closed without a look at the lease: by a beat that was frozen, of a message
                             that another one has sent and acknowledged
   NO_FENCE                  scripts that write the record do not check the lease
   NO_COMPARE                scripts that write the record do not compare what is there
   CLOSES_WITHOUT_LOOK       a worker leaves a run to beat by what it has read before, and does not look at the record
                             when it closes the register
   ACKS_WITHOUT_LOOK         a run is acknowledged although a worker has left it to beat
   LOOKS_BEFORE_ACK          the register is read before the intent is taken out, not by the same script
   FOLLOWS_STORE             a leader takes over what a store that went back says
*/
#ifndef BEATS
#define BEATS 2
#endif
#ifndef STEALS
#define STEALS 2
#endif
#ifndef CRASHES
#define CRASHES 2
#endif
#ifndef LOSSES
#define LOSSES 2
#endif
#ifndef LATE
#define LATE 1
#endif
#ifndef GIVE_UPS
#define GIVE_UPS 1
#endif
#ifndef ROLLBACKS
#define ROLLBACKS 0
#endif
#define MOST_MESSAGES 4

#define NOBODY 0
/* What a record says; it goes from left to right. */
#define DUE 0
#define CLAIMED 1
#define SENT 2
#define MISSED 3
/* The register. */
#define UNSET 0
#define STARTED 1
#define CLOSED 2
/* A worker has given the run up, and recorded that itself. */
#define GIVEN_UP 3

byte lease = NOBODY, record = DUE, run_register = UNSET;
byte old_lease, old_record, old_register;
bool has_snapshot = false, went_back = false;
byte late_token = NOBODY, late_old, late_new;     /* a script that is executed late */
byte queue = 0, published = 0;
byte runs = 0, misses = 0;                        /* ghosts: how often it ran, was recorded as missed */
byte token[BEATS];
byte next_token = 1, steals = 0, crashes = 0, losses = 0, give_ups = 0, rollbacks = 0, late = 0;

#define HOLDER_LIVES (lease != NOBODY && (token[0] == lease || token[BEATS - 1] == lease))

inline check() {
  assert(runs <= 1);
  assert(!(runs > 0 && misses > 0));
  assert(misses <= 1)
}

/* A script that replaces the record. `done`: it is in force now, by this copy or by one before. */
inline replace(by, old, new) {
  done = false;
  if
#ifndef NO_FENCE
  :: lease != by -> skip
#endif
#ifndef NO_COMPARE
  :: record != old && record != new -> skip
#endif
#if !defined(ACKS_WITHOUT_LOOK) && !defined(LOOKS_BEFORE_ACK)
  :: new == SENT && record != new && run_register == CLOSED -> kept = true
#endif
  :: else ->
     done = true;
     if
     :: record != new || (old == new) ->
        record = new;
        if :: new == MISSED -> misses++ :: else fi
     :: else
     fi
  fi;
  check()
}

active proctype Surroundings() {
  bool done, kept, takes = false, saw_intent;
end:
  do
  /* A message comes late: a worker looks at the record, and then gives the run up. */
  :: d_step { queue > 0 && late < LATE && !takes -> late++; queue--; takes = true; saw_intent = (record == CLAIMED) }
  :: d_step {
       takes -> takes = false;
       if
#ifdef CLOSES_WITHOUT_LOOK
       :: run_register == UNSET && saw_intent -> run_register = CLOSED
       :: run_register == UNSET && !saw_intent -> run_register = GIVEN_UP; misses++
#else
       :: run_register == UNSET && saw_intent && record == CLAIMED -> run_register = CLOSED
       :: run_register == UNSET && !(saw_intent && record == CLAIMED) -> run_register = GIVEN_UP; misses++
#endif
       :: else
       fi;
       check()
     }
  :: d_step {
       queue > 0 -> queue--;
#ifdef NO_GUARD
       runs++;
#else
       if :: run_register == UNSET -> run_register = STARTED; runs++ :: else fi;
#endif
       check()
     }
  :: d_step { late_token != NOBODY -> replace(late_token, late_old, late_new); late_token = NOBODY; done = false; kept = false }
#if ROLLBACKS > 0
  :: d_step {
       !has_snapshot && rollbacks < ROLLBACKS ->
       has_snapshot = true; old_lease = lease; old_record = record; old_register = run_register
     }
  /* A message that is not acknowledged is in doubt: it may run once more, when its register is lost as well. */
  :: d_step {
       has_snapshot && rollbacks < ROLLBACKS && record != CLAIMED -> rollbacks++; went_back = true;
       lease = old_lease; record = old_record; run_register = old_register
     }
#endif
  od
}

#define MAY_DIE crashes < CRASHES
inline die() { crashes++; token[me] = NOBODY; memory = DUE; led = false; done = false; kept = false; wanted = DUE }
inline publish() {
  /* More of them show nothing new: those before have run, or the register is closed, or they wait. */
  d_step { if :: published < MOST_MESSAGES -> queue++; published++ :: else fi }
}

/* Commit memory -> wanted. Without an answer it is sent again; a copy may still be under way. */
inline commit() {
  do
  :: d_step { replace(token[me], memory, wanted); if :: done -> memory = wanted :: else fi }; break
  :: d_step { losses < LOSSES -> losses++; replace(token[me], memory, wanted); done = false; kept = false }
  :: d_step {
       losses < LOSSES && late_token == NOBODY ->
       losses++; late_token = token[me]; late_old = memory; late_new = wanted
     }
  :: d_step { MAY_DIE -> die() } goto end_standing_by
  od;
  if
  :: done -> done = false
  :: kept -> kept = false; goto deciding
  :: else -> goto lost
  fi
}

proctype Beat(byte me) {
  byte memory = DUE, wanted = DUE, held = UNSET;
  bool led = false, done = false, kept = false;

end_standing_by:
  if
  :: d_step {
       (!HOLDER_LIVES || steals < STEALS) ->
       if :: HOLDER_LIVES -> steals++ :: else fi;
       token[me] = next_token; next_token++; lease = token[me]
     }
  fi;
#ifndef FOLLOWS_STORE
  /* Nobody else has led: what the store lacks comes from memory. */
  if
  :: d_step { led && went_back -> if :: lease == token[me] -> record = memory :: else fi }
  :: !(led && went_back)
  fi;
#endif
  d_step { memory = record; led = true }

deciding:
  if
  :: d_step { MAY_DIE -> die() } goto end_standing_by
  :: went_back && lease != token[me] -> goto lost
  :: memory == DUE ->
     if
     :: wanted = CLAIMED;
#ifdef PUBLISH_BEFORE_CLAIM
        publish();
#endif
        commit()
     :: wanted = MISSED; commit()
     fi;
     goto deciding
  :: memory == CLAIMED ->
     if
     /* A beat closed it, and could not write the record. */
     :: run_register == CLOSED -> wanted = MISSED; commit()
     :: run_register != CLOSED -> wanted = SENT;
#ifdef ACK_BEFORE_PUBLISH
        commit();
        publish()
#else
#ifndef PUBLISH_BEFORE_CLAIM
        publish();
#endif
        if
        :: d_step { losses < LOSSES -> losses++ } goto deciding     /* no answer of the broker: in doubt */
#ifdef LOOKS_BEFORE_ACK
        :: run_register == CLOSED -> goto deciding
        :: run_register != CLOSED -> commit()
#else
        :: commit()
#endif
        fi
#endif
     :: give_ups < GIVE_UPS -> give_ups++; wanted = MISSED;
#ifndef MISSED_WITHOUT_REGISTER
        d_step {
          if
#ifndef UNFENCED_REGISTER
          :: lease != token[me] -> held = UNSET
#endif
          :: else -> if :: run_register == UNSET -> run_register = CLOSED :: else fi; held = run_register
          fi
        }
        if
        :: held == UNSET -> goto lost
        :: held == STARTED || held == GIVEN_UP -> wanted = SENT; held = UNSET
        :: held == CLOSED -> held = UNSET
        fi;
#endif
        commit()
     fi;
     goto deciding
  :: memory == SENT || memory == MISSED -> goto end_idle
  fi;

end_idle:
  if
  :: lease != token[me] -> goto lost
  :: d_step { MAY_DIE -> die() } goto end_standing_by
  fi;

lost:
  if
  :: d_step {
       token[me] = NOBODY; done = false; wanted = DUE;
       /* The lease of a store that went back is nobody's; any other one is of a beat that knows more. */
       if :: HOLDER_LIVES || !went_back -> led = false; memory = DUE :: else fi
     }
  fi;
  goto end_standing_by
}

init {
  atomic { byte n; for (n : 0 .. BEATS - 1) { run Beat(n) } }
  timeout;
  assert(runs + misses == 1)
}
