// The books of a line while a request passes through them: the methods of `Fit`, `Station` and `Placement` that every
// request calls, as src/twinline/gateway/routing/ has them in Python, which is their definition: the same arithmetic in
// the same order, so the same books to the last bit.
//
// The objects stay Python's; `bind` notes once where each of their fields lies. A book that holds anything but a float
// or an integer in a field of numbers is left to the Python method, before any of it is changed.

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <cmath>

namespace {

// Where the fields lie.

enum FitField { kExpected, kFixed0, kObserved, kS0, kSlope0, kSx, kSxx, kSxy, kSy, kFixed, kKnee, kScale, kSeen, kSlope,
                kFitFields };
const char* const kFitNames[] = {"_expected", "_fixed", "_observed", "_s0", "_slope", "_sx", "_sxx", "_sxy", "_sy",
                                 "fixed", "knee", "scale", "seen", "slope"};

enum StationField {  // numbers first
  kBalance, kBalanceAt, kBusy, kBusyAt, kElsewherePrefill, kAsked, kBase, kCachedSeen, kDecodeWork, kDecoding, kFreeAt,
  kHeadAt, kHeadSeconds, kHeard, kInflight, kInputPrice, kLateStep, kMeanOutput, kOutputPrice, kOverdue, kPrefillDelay,
  kPrefillWork, kPrice, kPromptSeen, kQueue, kSecondsPerToken, kSlotSeconds, kSlots, kStepCost, kStepGoal, kTpot, kTrust,
  kTtftFixed, kStationNumbers, kClock = kStationNumbers, kPrefill, kStep, kWaiting, kStationFields };
const char* const kStationNames[] = {
    "_balance", "_balance_at", "_busy", "_busy_at", "_elsewhere_prefill", "asked", "base", "cached_seen", "decode_work",
    "decoding", "free_at", "head_at", "head_seconds", "heard", "inflight", "input_price", "late_step", "mean_output",
    "output_price", "overdue", "prefill_delay", "prefill_work", "price", "prompt_seen", "queue", "seconds_per_token",
    "slot_seconds", "slots", "step_cost", "step_goal", "tpot", "trust", "ttft_fixed", "clock", "prefill", "step",
    "_waiting"};

enum PlacementField { kPlacedBalance, kMarkedAt, kMarkedTokens, kHeld, kPrompt, kChosenAt, kPrefillTokens,
                      kPlacementNumbers, kEnded = kPlacementNumbers, kWaits, kPrefillTook, kStationOf, kIndex, kKeys,
                      kPlacedBit, kPlacementFields };
const char* const kPlacementNames[] = {"_balance", "_marked_at", "_marked_tokens", "_held", "_prompt", "chosen_at",
                                       "prefill_tokens", "_ended", "waits", "_prefill_took", "station", "_index", "_keys",
                                       "_bit"};

struct Constants {
  double memory, recent, prior, outlier;
  double unknown_slots, prefill_weight, prefill_delay, reading, most_busy, busy_seconds;
  double min_prefill, learn_tokens, trusted;
} constants;

// A Python class and where its slots are.
template <int fields>
struct Kind {
  PyTypeObject* type = nullptr;
  Py_ssize_t at[fields] = {};

  bool bind(PyObject* given, const char* const* names) {
    for (int i = 0; i < fields; ++i) {
      PyObject* member = PyObject_GetAttrString(given, names[i]);
      if (member == nullptr) return false;
      bool is_slot = Py_TYPE(member) == &PyMemberDescr_Type;
      if (is_slot) at[i] = reinterpret_cast<PyMemberDescrObject*>(member)->d_member->offset;
      Py_DECREF(member);
      if (!is_slot) return PyErr_Format(PyExc_TypeError, "%s is no slot", names[i]), false;
    }
    Py_INCREF(given);
    Py_XSETREF(type, reinterpret_cast<PyTypeObject*>(given));
    return true;
  }
};

Kind<kFitFields> fit_kind;
Kind<kStationFields> station_kind;
Kind<kPlacementFields> placement_kind;

// One object of such a class. Numbers are read with `[]` once `sound` has looked at all of them.
template <int fields, int numbers, Kind<fields>& kind>
class Book {
 public:
  explicit Book(PyObject* object) : object_(object) {}

  bool sound() const {
    if (object_ == nullptr || Py_TYPE(object_) != kind.type) return false;
    for (int i = 0; i < fields; ++i) {
      PyObject* value = slot(i);
      if (value == nullptr) return false;
      if (i < numbers && !PyFloat_CheckExact(value) && !small(value)) return false;
    }
    return true;
  }

  PyObject* slot(int field) const { return *place(field); }
  bool is_true(int field) const { return slot(field) == Py_True; }

  double operator[](int field) const {
    PyObject* value = slot(field);
    return PyFloat_CheckExact(value) ? PyFloat_AS_DOUBLE(value) : static_cast<double>(PyLong_AsLongLong(value));
  }

  void put(int field, PyObject* value) const {  // takes the reference
    PyObject* old = slot(field);
    *place(field) = value;
    Py_DECREF(old);
  }
  void set(int field, double value) const { put(field, PyFloat_FromDouble(value)); }
  void count(int field, double by) const { put(field, PyLong_FromLongLong(PyLong_AsLongLong(slot(field)) + (long long)by)); }
  void flag(int field, bool value) const { put(field, Py_NewRef(value ? Py_True : Py_False)); }

 private:
  static bool small(PyObject* value) {  // an integer that a double holds
    if (!PyLong_CheckExact(value)) return false;
    int overflow = 0;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    return overflow == 0 && number < (1LL << 53) && number > -(1LL << 53);
  }
  PyObject** place(int field) const {
    return reinterpret_cast<PyObject**>(reinterpret_cast<char*>(object_) + kind.at[field]);
  }

  PyObject* object_;
};

using Fit = Book<kFitFields, kFitFields, fit_kind>;
using Station = Book<kStationFields, kStationNumbers, station_kind>;
using Placement = Book<kPlacementFields, kPlacementNumbers, placement_kind>;

bool integers(const Station& s) {
  return PyLong_CheckExact(s.slot(kAsked)) && PyLong_CheckExact(s.slot(kDecoding)) && PyLong_CheckExact(s.slot(kInflight)) &&
         PyLong_CheckExact(s.slot(kPromptSeen)) && PyLong_CheckExact(s.slot(kCachedSeen));
}

bool whole(PyObject* station) {
  Station s(station);
  return s.sound() && integers(s) && Fit(s.slot(kPrefill)).sound() && Fit(s.slot(kStep)).sound() &&
         PyLong_CheckExact(Fit(s.slot(kPrefill)).slot(kSeen)) && PyLong_CheckExact(Fit(s.slot(kStep)).slot(kSeen));
}

// What the methods do.

void learn(const Fit& f, double load, double seconds) {
  const Constants& c = constants;
  f.count(kSeen, 1);
  double seen = f[kSeen];
  double expected = f[kFixed0] + f[kSlope0] * load;
  if (seen > 5) {
    double limit = c.outlier * f[kScale] * expected;
    if (seconds > limit) seconds = limit;
  } else if (seen == 1 && seconds > 0.0) {
    expected = seconds;
  }
  double w = 1.0 / (expected * expected);
  double wx = w * load;
  double s0 = f[kS0] * c.memory + w;
  double sx = f[kSx] * c.memory + wx;
  double sxx = f[kSxx] * c.memory + wx * load;
  double sy = f[kSy] * c.memory + w * seconds;
  double sxy = f[kSxy] * c.memory + wx * seconds;
  f.set(kS0, s0), f.set(kSx, sx), f.set(kSxx, sxx), f.set(kSy, sy), f.set(kSxy, sxy);
  double prior = c.prior * w;
  double knee = f[kKnee];
  double a11 = s0 + prior;
  double a12 = sx - prior * knee;
  double a22 = sxx + prior * knee * knee;
  double determinant = a11 * a22 - a12 * a12;
  if (sy > 0.0 && determinant > 1e-12 * a11 * a22) {
    double fixed = (sy * a22 - sxy * a12) / determinant;
    double slope = (sxy * a11 - sy * a12) / determinant;
    if (slope <= 0.0) {
      fixed = sy / s0;
      slope = 1e-3 * fixed / knee;
    } else if (fixed <= 0.0) {
      slope = sxy / sxx;
      fixed = 1e-3 * slope * knee;
    }
    f.set(kFixed0, fixed), f.set(kSlope0, slope);
  }
  double observed = f[kObserved] * c.recent + seconds;
  double expects = f[kExpected] * c.recent + f[kFixed0] + f[kSlope0] * load;
  f.set(kObserved, observed), f.set(kExpected, expects);
  double scale = observed / expects;
  if (scale < 0.01) scale = 0.01;
  f.set(kScale, scale);
  f.set(kFixed, scale * f[kFixed0]);
  f.set(kSlope, scale * f[kSlope0]);
}

// Whether `learn` would divide by zero, which in Python is an error: that is left to Python.
bool learnable(const Fit& f, double load, double seconds) {
  double expected = f[kFixed0] + f[kSlope0] * load;
  return expected > 0.0 && load > 0.0 && seconds >= 0.0 && f[kKnee] > 0.0 && std::isfinite(expected) &&
         std::isfinite(load) && std::isfinite(seconds);
}

void rebase(const Station& s) {
  double base = s[kTtftFixed] + s[kQueue] * s[kSecondsPerToken];
  double beyond = s[kInflight] - s[kSlots] + 1;
  s.set(kBase, beyond > 0 ? base + beyond * s[kSlotSeconds] : base);
}

void derive(const Station& s) {
  const Constants& c = constants;
  Fit prefill(s.slot(kPrefill)), step(s.slot(kStep));
  double overdue = s[kOverdue];
  double fixed = step[kFixed], slope = step[kSlope];
  double streams = s[kDecoding] + 1;
  double slots = s[kSlots];
  double per_token = prefill[kSlope] * overdue;
  s.set(kSecondsPerToken, per_token);
  s.set(kTtftFixed, prefill[kFixed] * overdue);
  double tpot = fixed + slope * streams;
  s.set(kTpot, tpot);
  double goal = s[kStepGoal];
  double beyond = tpot - 0.9 * goal;
  s.set(kStepCost, c.reading * (tpot + slope * s[kDecoding]) + (beyond > 0.0 ? beyond : 0.0));
  double share;
  if (slots < 1 << 30) {
    s.set(kSlotSeconds, s[kMeanOutput] * (fixed + slope * slots) / slots);
    share = slots / 4;
  } else {
    s.set(kSlotSeconds, 0.0);
    share = c.unknown_slots / 4;
  }
  double price = s[kPrice];
  double busy = s[kBusy];
  if (!(busy < c.most_busy)) busy = c.most_busy;
  s.set(kPrefillWork, c.prefill_weight * price * per_token / (1.0 - busy) + s[kInputPrice]);
  s.set(kPrefillDelay, c.prefill_delay * per_token * busy / (1.0 - busy));
  s.set(kDecodeWork, price * (slope + fixed / (streams > share ? streams : share)) + s[kOutputPrice]);
  double late = tpot / goal;
  s.set(kLateStep, late <= 0.9 ? late * (0.6 / 0.9) : late * 1.5);
  rebase(s);
}

bool derivable(const Station& s) { return s[kStepGoal] != 0.0 && s[kSlots] > 0.0; }

void turn(const Station& s, double now, double was) {
  double span = now - s[kBusyAt];
  if (span > 0) {
    s.set(kBusy, s[kBusy] + (was - s[kBusy]) * (span / (span + constants.busy_seconds)));
    s.set(kBusyAt, now);
  }
}

double balance(const Station& s, double now) { return s[kBalance] + s[kDecoding] * (now - s[kBalanceAt]); }

void rebalance(const Station& s, double now) {
  s.set(kBalance, balance(s, now));
  s.set(kBalanceAt, now);
}

// The oldest of those that wait, or nullptr; none are there that do not wait. A Python error leaves `failed` true.
PyObject* oldest(const Station& s, bool drop, bool& failed) {
  PyObject* waiting = s.slot(kWaiting);
  while (true) {
    Py_ssize_t size = PyObject_Size(waiting);
    if (size <= 0) return failed = size < 0, nullptr;
    PyObject* first = PySequence_GetItem(waiting, 0);
    if (first == nullptr) return failed = true, nullptr;
    Py_DECREF(first);  // the deque keeps it
    if (!Placement(first).sound()) {
      PyErr_SetString(PyExc_TypeError, "what waits is no placement");
      return failed = true, nullptr;
    }
    if (!drop || Placement(first).is_true(kWaits)) return first;
    PyObject* gone = PyObject_CallMethod(waiting, "popleft", nullptr);
    if (gone == nullptr) return failed = true, nullptr;
    Py_DECREF(gone);
  }
}

bool head(const Station& s, bool drop) {
  bool failed = false;
  PyObject* first = oldest(s, drop, failed);
  if (failed) return false;
  if (first == nullptr) return s.set(kHeadSeconds, 0.0), true;
  Placement p(first);
  s.set(kHeadAt, p[kChosenAt] > s[kFreeAt] ? p[kChosenAt] : s[kFreeAt]);
  s.set(kHeadSeconds, p[kPrefillTokens] * s[kSecondsPerToken]);
  return true;
}

bool release(const Station& s, double prefill_tokens, double now) {
  double queue = s[kQueue] - prefill_tokens;
  if (queue <= s[kElsewherePrefill] + 0.5) {
    queue = s[kElsewherePrefill];
    turn(s, now, 1.0);
  }
  s.set(kQueue, queue);
  return head(s, true);
}

bool clock_of(const Station& s, double& now) {
  PyObject* told = PyObject_CallNoArgs(s.slot(kClock));
  if (told == nullptr) return false;
  now = PyFloat_AsDouble(told);
  Py_DECREF(told);
  return !(now == -1.0 && PyErr_Occurred());
}

// The methods. Each returns 1 when it is done, 0 where Python should do it (nothing was changed), -1 with an error.

int sent(PyObject* self, PyObject* placement, double now) {
  if (!whole(self) || !Placement(placement).sound()) return 0;
  Station s(self);
  Placement p(placement);
  if (s[kQueue] <= s[kElsewherePrefill]) turn(s, now, 0.0);
  s.set(kQueue, s[kQueue] + p[kPrefillTokens]);
  s.count(kInflight, 1);
  s.count(kAsked, 1);
  PyObject* done = PyObject_CallMethod(s.slot(kWaiting), "append", "O", placement);
  if (done == nullptr) return -1;
  Py_DECREF(done);
  if (PyObject_Size(s.slot(kWaiting)) == 1 && !head(s, false)) return -1;
  rebase(s);
  return 1;
}

int first_token(PyObject* self) {
  Placement p(self);
  if (!p.sound()) return 0;
  if (!p.is_true(kWaits) || p.is_true(kEnded)) return 1;
  if (!whole(p.slot(kStationOf))) return 0;
  Station s(p.slot(kStationOf));
  double now;
  if (!derivable(s) || !learnable(Fit(s.slot(kPrefill)), p[kPrefillTokens], 0.0)) return 0;
  if (!clock_of(s, now)) return -1;
  p.flag(kWaits, false);
  p.set(kMarkedAt, now);
  double began = p[kChosenAt];
  if (s[kFreeAt] > began) began = s[kFreeAt];
  s.set(kFreeAt, now);
  if (!release(s, p[kPrefillTokens], now)) return -1;
  rebalance(s, now);
  s.count(kDecoding, 1);
  double took = now - began;
  if (p[kHeld] != 0.0) {
    p.put(kPrefillTook, PyFloat_FromDouble(took));
  } else {
    s.set(kHeard, now);
    learn(Fit(s.slot(kPrefill)), p[kPrefillTokens], took);
  }
  derive(s);
  p.set(kPlacedBalance, balance(s, now));
  return 1;
}

struct End {
  double output = 0.0;
  bool told = false;  // how much was cached
  double cached = 0.0;
  bool ok = true, fault = false;
  PyObject* keys = nullptr;
};

int end(PyObject* self, const End& e) {
  Placement p(self);
  if (!p.sound()) return 0;
  if (p.is_true(kEnded)) return 1;
  PyObject* took = p.slot(kPrefillTook);
  if (!whole(p.slot(kStationOf)) || (took != Py_None && !PyFloat_CheckExact(took))) return 0;
  const Constants& c = constants;
  Station s(p.slot(kStationOf));
  Fit prefill(s.slot(kPrefill)), step(s.slot(kStep));
  if (e.fault || !derivable(s)) return 0;  // faults are few
  double computed = !e.told ? p[kPrefillTokens] : p[kPrompt] - e.cached;
  if (!(computed > c.min_prefill)) computed = c.min_prefill;
  if (took != Py_None && !learnable(prefill, computed, PyFloat_AS_DOUBLE(took))) return 0;
  double now;
  if (!clock_of(s, now)) return -1;
  double made = e.output - p[kMarkedTokens];
  double span = now - p[kMarkedAt];
  bool waits = p.is_true(kWaits);
  bool steps = !waits && made >= c.learn_tokens && span > 0.0;
  double mean = steps ? (balance(s, now) - p[kPlacedBalance]) / span : 0.0;
  if (steps && !learnable(step, mean, span / made)) return 0;

  p.flag(kEnded, true);
  if (took != Py_None) {
    s.set(kHeard, now);
    learn(prefill, computed, PyFloat_AS_DOUBLE(took));
  }
  if (waits) {
    p.flag(kWaits, false);
    s.count(kInflight, -1);
    if (!release(s, p[kPrefillTokens], now)) return -1;
    rebase(s);
  } else {
    if (steps) {
      double balanced = balance(s, now);
      s.set(kHeard, now);
      learn(step, mean, span / made);
      p.set(kPlacedBalance, balanced);
      p.set(kMarkedAt, now);
      p.put(kMarkedTokens, PyLong_FromLongLong(static_cast<long long>(e.output)));
    }
    s.count(kInflight, -1);
    double decoding = s[kDecoding];
    rebalance(s, now);
    if (decoding >= s[kSlots]) s.set(kFreeAt, now);
    s.count(kDecoding, -1);
    derive(s);
  }
  if (e.ok && e.output != 0.0) s.set(kMeanOutput, s[kMeanOutput] + 0.03 * (e.output - s[kMeanOutput]));
  double prompt = p[kPrompt], held = p[kHeld];
  if (e.told && prompt != 0.0) {
    s.count(kPromptSeen, prompt);
    s.count(kCachedSeen, e.cached);
    if (held > 0) {
      double share = e.cached / held;
      s.set(kTrust, s[kTrust] + 0.1 * ((share < 1.0 ? share : 1.0) - s[kTrust]));
    }
    if (s[kTrust] < c.trusted && e.cached < 0.5 * held) {
      PyObject* done = PyObject_CallMethod(p.slot(kIndex), "correct", "OOL", p.slot(kKeys), p.slot(kPlacedBit),
                                           static_cast<long long>(e.cached));
      if (done == nullptr) return -1;
      Py_DECREF(done);
    }
  }
  if (e.ok && e.keys != nullptr) {
    int any = PyObject_IsTrue(e.keys);
    if (any < 0) return -1;
    if (any) {
      PyObject* done = PyObject_CallMethod(p.slot(kIndex), "put", "OO", e.keys, p.slot(kPlacedBit));
      if (done == nullptr) return -1;
      Py_DECREF(done);
    }
  }
  return 1;
}

// What Python calls: the same, and what it does in Python where that must be.

enum Method { kLearn, kDerive, kSent, kFirstToken, kEnd, kMethods };
PyObject* definitions[kMethods] = {};

PyObject* result(int done, Method method, PyObject* arguments, PyObject* named = nullptr) {
  if (done < 0) return nullptr;
  if (done > 0) Py_RETURN_NONE;
  if (definitions[method] == nullptr) return PyErr_Format(PyExc_RuntimeError, "bind was not called");
  return PyObject_Call(definitions[method], arguments, named);
}

PyObject* learn_method(PyObject*, PyObject* arguments) {
  PyObject* fit;
  double load, seconds;
  if (!PyArg_ParseTuple(arguments, "Odd", &fit, &load, &seconds)) return nullptr;
  bool can = Fit(fit).sound() && PyLong_CheckExact(Fit(fit).slot(kSeen)) && learnable(Fit(fit), load, seconds);
  if (can) learn(Fit(fit), load, seconds);
  return result(can, kLearn, arguments);
}

PyObject* derive_method(PyObject*, PyObject* arguments) {
  PyObject* station;
  if (!PyArg_ParseTuple(arguments, "O", &station)) return nullptr;
  bool can = whole(station) && derivable(Station(station));
  if (can) derive(Station(station));
  return result(can, kDerive, arguments);
}

PyObject* sent_method(PyObject*, PyObject* arguments) {
  PyObject *station, *placement;
  double now;
  if (!PyArg_ParseTuple(arguments, "OOd", &station, &placement, &now)) return nullptr;
  return result(sent(station, placement, now), kSent, arguments);
}

PyObject* first_token_method(PyObject*, PyObject* arguments) {
  PyObject* placement;
  if (!PyArg_ParseTuple(arguments, "O", &placement)) return nullptr;
  return result(first_token(placement), kFirstToken, arguments);
}

PyObject* end_method(PyObject*, PyObject* arguments, PyObject* named) {
  static const char* names[] = {"", "output_tokens", "cached_tokens", "ok", "fault", "keys", nullptr};
  PyObject *placement, *output = nullptr, *cached = Py_None;
  int ok = 1, fault = 0;
  End e;
  if (!PyArg_ParseTupleAndKeywords(arguments, named, "O|OOppO", const_cast<char**>(names), &placement, &output, &cached,
                                   &ok, &fault, &e.keys))
    return nullptr;
  bool counts = (output == nullptr || PyLong_CheckExact(output)) && (cached == Py_None || PyLong_CheckExact(cached));
  if (!counts) return result(0, kEnd, arguments, named);
  e.output = output == nullptr ? 0.0 : static_cast<double>(PyLong_AsLongLong(output));
  e.told = cached != Py_None;
  e.cached = e.told ? static_cast<double>(PyLong_AsLongLong(cached)) : 0.0;
  if (PyErr_Occurred()) return nullptr;
  e.ok = ok, e.fault = fault;
  return result(end(placement, e), kEnd, arguments, named);
}

PyMethodDef compiled[] = {
    {"learn", learn_method, METH_VARARGS, nullptr},
    {"derive", derive_method, METH_VARARGS, nullptr},
    {"sent", sent_method, METH_VARARGS, nullptr},
    {"first_token", first_token_method, METH_VARARGS, nullptr},
    {"end", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(end_method)), METH_VARARGS | METH_KEYWORDS, nullptr},
};

// bind(Fit, Station, Placement, constants, definitions) -> the compiled methods, in the order of the definitions.
// Raises TypeError for classes without the slots.
PyObject* bind(PyObject*, PyObject* arguments) {
  PyObject *fit, *station, *placement;
  PyObject* methods[kMethods];
  Constants& c = constants;
  if (!PyArg_ParseTuple(arguments, "O!O!O!(ddddddddddddd)(OOOOO)", &PyType_Type, &fit, &PyType_Type, &station, &PyType_Type,
                        &placement, &c.memory, &c.recent, &c.prior, &c.outlier, &c.unknown_slots, &c.prefill_weight,
                        &c.prefill_delay, &c.reading, &c.most_busy, &c.busy_seconds, &c.min_prefill, &c.learn_tokens, &c.trusted,
                        &methods[0], &methods[1], &methods[2], &methods[3], &methods[4]))
    return nullptr;
  if (!fit_kind.bind(fit, kFitNames) || !station_kind.bind(station, kStationNames) ||
      !placement_kind.bind(placement, kPlacementNames))
    return nullptr;
  PyObject* made = PyTuple_New(kMethods);
  for (int i = 0; made != nullptr && i < kMethods; ++i) {
    Py_INCREF(methods[i]);
    Py_XSETREF(definitions[i], methods[i]);
    PyObject* function = PyCFunction_New(&compiled[i], nullptr);
    PyObject* method = function == nullptr ? nullptr : PyInstanceMethod_New(function);
    Py_XDECREF(function);
    if (method == nullptr) Py_CLEAR(made);
    else PyTuple_SET_ITEM(made, i, method);
  }
  return made;
}

PyMethodDef functions[] = {
    {"bind", bind, METH_VARARGS, "Notes where the fields lie, the constants and the definitions; the compiled methods."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_books", nullptr, 0, functions, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__books() { return PyModule_Create(&module); }
