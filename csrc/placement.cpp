// The router's rule of choice over its lines, as `Router._best_of` in src/twinline/gateway/routing/router.py has it in
// Python, which is its definition: the same arithmetic in the same order, so the same line to the last bit.
//
// A line's book is a `Station` with slots; `bind` notes once where each of its fields lies. A field that is not a float
// or an integer of 64 bits makes `best` return None: Python then chooses.

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <vector>

namespace {

enum Field { kBase, kPerToken, kHeadSeconds, kHeadAt, kLateStep, kTrust, kPrefillWork, kDecodeWork, kStepCost,
             kPrefillDelay, kRank, kHazard, kTpot, kBit, kRisky, kFields };
const char* const kNames[kFields] = {
    "base", "seconds_per_token", "head_seconds", "head_at", "late_step", "trust", "prefill_work", "decode_work",
    "step_cost", "prefill_delay", "rank", "hazard", "tpot", "bit", "risky"};
enum Rule { kCheapest, kFastest, kPrefer };

PyTypeObject* station_type = nullptr;
Py_ssize_t offsets[kFields];
double min_prefill, detection_seconds, holder, holder_late;

PyObject* slot(PyObject* station, Field field) {
  return *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(station) + offsets[field]);
}

bool number(PyObject* station, Field field, double& into) {
  PyObject* value = slot(station, field);
  if (value == nullptr) return false;
  if (PyFloat_CheckExact(value)) {
    into = PyFloat_AS_DOUBLE(value);
    return true;
  }
  if (!PyLong_CheckExact(value)) return false;
  into = PyLong_AsDouble(value);
  return !(into == -1.0 && PyErr_Occurred());
}

bool bits_of(PyObject* value, unsigned long long& into) {
  if (value == nullptr || !PyLong_CheckExact(value)) return false;
  into = PyLong_AsUnsignedLongLong(value);
  return !(into == static_cast<unsigned long long>(-1) && PyErr_Occurred());
}

int tier_of(double late) { return late <= 0.6 ? 0 : late <= 1.5 ? 1 : late <= 4.0 ? 2 : late <= 10.0 ? 3 : 4; }

struct Held {
  double tokens;
  unsigned long long bits;
};

struct Holder {
  double late, score, ttft, has;
  Py_ssize_t at;
};

struct Ask {
  double prompt, output, per_ttft, now, mean_price;
  int rule, movable, sticky;
};

struct Best {
  Py_ssize_t at = -1;
  int tier = 9;
  double score = 0.0, late = 0.0, ttft = 0.0, has = 0.0, least_late = 1e300;
};

bool choose(PyObject* lines, const std::vector<Held>& held, const Ask& ask, Best& best) {
  std::vector<Holder> holders;
  double tokens = ask.prompt, has = 0.0;
  bool holds = false;
  for (Py_ssize_t at = 0; at < PyList_GET_SIZE(lines); ++at) {
    PyObject* station = PyList_GET_ITEM(lines, at);
    if (Py_TYPE(station) != station_type) return false;
    double field[kBit];
    for (int i = 0; i < kBit; ++i)
      if (!number(station, static_cast<Field>(i), field[i])) return false;
    PyObject* risky = slot(station, kRisky);
    if (risky != Py_True && risky != Py_False) return false;
    if (!held.empty()) {
      unsigned long long bit;
      if (!bits_of(slot(station, kBit), bit)) return false;
      tokens = ask.prompt, has = 0.0, holds = false;
      for (const Held& entry : held) {
        if (!(entry.bits & bit)) continue;
        has = entry.tokens;
        tokens = ask.prompt - has * field[kTrust];
        if (tokens < min_prefill) tokens = min_prefill;
        holds = has + has > ask.prompt;
        break;
      }
    }
    double ttft = field[kBase] + tokens * field[kPerToken];
    if (field[kHeadSeconds] != 0.0) {
      double done = ask.now - field[kHeadAt];
      ttft -= done < field[kHeadSeconds] ? done : field[kHeadSeconds];
    }
    double late = ttft * ask.per_ttft;
    if (field[kLateStep] > late) late = field[kLateStep];
    if (late < best.least_late) best.least_late = late;
    int tier = tier_of(late);
    auto risk = [&] {
      double lasts = ttft + ask.output * field[kTpot];
      double lost = ask.movable ? detection_seconds + ask.prompt * field[kPerToken] : lasts;
      return field[kHazard] * lasts * lost;
    };
    bool risks = risky == Py_True || !ask.movable;
    double score;
    if (ask.rule == kCheapest) {
      if (tier > best.tier && !holds) continue;
      score = tokens * field[kPrefillWork] + ask.output * field[kDecodeWork];
      if (risks) score += ask.mean_price * risk();
    } else if (ask.rule == kFastest) {
      tier = 0;
      score = ttft + ask.output * field[kStepCost] + tokens * field[kPrefillDelay];
      if (risks) score += risk();
    } else {
      tier = tier ? tier - 1 : 0;
      score = field[kRank];
    }
    if (holds && ask.sticky) holders.push_back({late, score, ttft, has, at});
    if (tier < best.tier || (tier == best.tier && score < best.score))
      best.at = at, best.tier = tier, best.score = score, best.late = late, best.ttft = ttft, best.has = has;
  }
  if (best.tier > 0) {
    for (const Holder& each : holders) {
      if (each.late > holder_late) continue;
      int tier = tier_of(holder * each.late);
      if (tier < best.tier || (tier == best.tier && each.score < best.score))
        best.at = each.at, best.tier = tier, best.score = each.score, best.late = each.late, best.ttft = each.ttft,
        best.has = each.has;
    }
  }
  return best.at >= 0;
}

// best(lines, held, prompt, output, movable, sticky, per_ttft, now, rule, mean_price)
//   -> (place in lines, tokens held, late, ttft, least late) or None
PyObject* best(PyObject*, PyObject* arguments) {
  PyObject *lines, *held_list;
  Ask ask;
  if (!PyArg_ParseTuple(arguments, "O!O!ddppddid", &PyList_Type, &lines, &PyList_Type, &held_list, &ask.prompt,
                        &ask.output, &ask.movable, &ask.sticky, &ask.per_ttft, &ask.now, &ask.rule, &ask.mean_price))
    return nullptr;
  try {
    std::vector<Held> held;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(held_list); ++i) {
      PyObject* pair = PyList_GET_ITEM(held_list, i);
      Held entry;
      if (!PyTuple_CheckExact(pair) || PyTuple_GET_SIZE(pair) != 2 || !bits_of(PyTuple_GET_ITEM(pair, 1), entry.bits)) {
        PyErr_Clear();
        Py_RETURN_NONE;
      }
      entry.tokens = PyFloat_AsDouble(PyTuple_GET_ITEM(pair, 0));
      held.push_back(entry);
    }
    Best found;
    if (station_type == nullptr || PyErr_Occurred() || !choose(lines, held, ask, found)) {
      PyErr_Clear();
      Py_RETURN_NONE;
    }
    return Py_BuildValue("(nLddd)", found.at, static_cast<long long>(found.has), found.late, found.ttft,
                         found.least_late);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

// bind(Station, min_prefill, detection_seconds, holder, holder_late); raises TypeError for a class without the slots.
PyObject* bind(PyObject*, PyObject* arguments) {
  PyObject* type;
  if (!PyArg_ParseTuple(arguments, "O!dddd", &PyType_Type, &type, &min_prefill, &detection_seconds, &holder,
                        &holder_late))
    return nullptr;
  for (int i = 0; i < kFields; ++i) {
    PyObject* member = PyObject_GetAttrString(type, kNames[i]);
    if (member == nullptr) return nullptr;
    bool is_slot = Py_TYPE(member) == &PyMemberDescr_Type;
    if (is_slot) offsets[i] = reinterpret_cast<PyMemberDescrObject*>(member)->d_member->offset;
    Py_DECREF(member);
    if (!is_slot) return PyErr_Format(PyExc_TypeError, "%s is no slot of the station", kNames[i]);
  }
  Py_INCREF(type);
  Py_XSETREF(station_type, reinterpret_cast<PyTypeObject*>(type));
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"best", best, METH_VARARGS, "The best of the lines, or None where Python must choose."},
    {"bind", bind, METH_VARARGS, "Notes where a station's fields lie, and the rule's constants."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_placement", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__placement() { return PyModule_Create(&module); }
