// Knows again what a client sends again: a request's head, and of its body, a JSON object, all but one field.
// src/twinline/gateway/repeated.py and forms.py say what that is good for. What is not surely the same gives None, and is
// read as if it were new: bytes that are not one whole request with that head; in a body a name that comes twice or not
// at all, names with escapes, JSON that does not add up.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>

namespace {

constexpr int kDeepest = 64;  // levels of JSON inside the object

// Walks over JSON without reading it. Each method returns false where the input is not what it should be.
class Walker {
 public:
  Walker(const char* data, size_t size) : at_(data), end_(data + size) {}

  // The bytes of the value of the object's field `name`, which is there exactly once.
  bool field(const char* name, size_t size, const char*& from, const char*& to) {
    bool found = false;
    if (!takes('{')) return false;
    do {
      space();
      const char* key = at_ + 1;
      if (!text()) return false;
      size_t length = at_ - 1 - key;
      if (std::memchr(key, '\\', length) != nullptr || !takes(':')) return false;
      bool wanted = length == size && std::memcmp(key, name, size) == 0;
      if (wanted && found) return false;
      space();
      if (wanted) from = at_;
      if (!value(0)) return false;
      if (wanted) to = at_;
      found = found || wanted;
    } while (takes(','));
    if (!takes('}')) return false;
    space();
    return at_ == end_ && found;
  }

 private:
  void space() {
    while (at_ < end_ && (*at_ == ' ' || *at_ == '\n' || *at_ == '\t' || *at_ == '\r')) ++at_;
  }

  bool takes(char what) {
    space();
    if (at_ == end_ || *at_ != what) return false;
    ++at_;
    return true;
  }

  bool text() {
    if (at_ == end_ || *at_ != '"') return false;
    for (++at_; at_ < end_ && *at_ != '"'; ++at_)
      if (*at_ == '\\' && ++at_ == end_) return false;
    if (at_ == end_) return false;
    ++at_;
    return true;
  }

  bool value(int depth) {
    space();
    if (at_ == end_ || depth > kDeepest) return false;
    if (*at_ == '"') return text();
    bool object = *at_ == '{';
    if (object || *at_ == '[') {
      char close = object ? '}' : ']';
      ++at_;
      if (takes(close)) return true;
      do {
        space();
        if (object && !(text() && takes(':'))) return false;
        if (!value(depth + 1)) return false;
      } while (takes(','));
      return takes(close);
    }
    const char* began = at_;  // a number or a word: who decodes the field or has decoded the rest knows which are right
    while (at_ < end_ && std::memchr(",]} \n\t\r\"{[:", *at_, 12) == nullptr) ++at_;
    return at_ > began;
  }

  const char* at_;
  const char* end_;
};

// split(body, name) -> (the body without the field's value, that value), or None
PyObject* split(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 2 || !PyBytes_Check(arguments[0]) || !PyBytes_Check(arguments[1])) {
    PyErr_SetString(PyExc_TypeError, "split takes a body and a name, both bytes");
    return nullptr;
  }
  const char* body = PyBytes_AS_STRING(arguments[0]);
  size_t size = PyBytes_GET_SIZE(arguments[0]);
  const char *from = nullptr, *to = nullptr;
  if (!Walker(body, size).field(PyBytes_AS_STRING(arguments[1]), PyBytes_GET_SIZE(arguments[1]), from, to))
    Py_RETURN_NONE;
  size_t before = from - body, after = body + size - to;
  PyObject* rest = PyBytes_FromStringAndSize(nullptr, before + after);
  PyObject* part = PyBytes_FromStringAndSize(from, to - from);
  if (rest == nullptr || part == nullptr) {
    Py_XDECREF(rest);
    Py_XDECREF(part);
    return nullptr;
  }
  std::memcpy(PyBytes_AS_STRING(rest), body, before);
  std::memcpy(PyBytes_AS_STRING(rest) + before, to, after);
  return Py_BuildValue("(NN)", rest, part);
}

// Takes as long wherever they differ: a head holds its client's key.
bool same(const char* one, const char* other, Py_ssize_t size) {
  unsigned char difference = 0;
  for (Py_ssize_t i = 0; i < size; ++i) difference |= one[i] ^ other[i];
  return difference == 0;
}

// body_after(data, before, after) -> the body, if data are `before`, its length in digits, `after` and it; its length, if
// data end before it; or None
PyObject* body_after(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 3 || !PyBytes_Check(arguments[0]) || !PyBytes_Check(arguments[1]) || !PyBytes_Check(arguments[2])) {
    PyErr_SetString(PyExc_TypeError, "body_after takes data and two parts of a head, all bytes");
    return nullptr;
  }
  const char* at = PyBytes_AS_STRING(arguments[0]);
  const char* end = at + PyBytes_GET_SIZE(arguments[0]);
  Py_ssize_t before = PyBytes_GET_SIZE(arguments[1]), after = PyBytes_GET_SIZE(arguments[2]);
  if (end - at < before || !same(at, PyBytes_AS_STRING(arguments[1]), before)) Py_RETURN_NONE;
  at += before;
  Py_ssize_t length = 0;
  const char* digits = at;
  while (at < end && at - digits < 5 && *at >= '0' && *at <= '9') length = length * 10 + (*at++ - '0');
  const Py_ssize_t left = end - at - after;
  if (at == digits || *digits == '0' || (left != 0 && left != length) || !same(at, PyBytes_AS_STRING(arguments[2]), after))
    Py_RETURN_NONE;
  if (left == 0) return PyLong_FromSsize_t(length);
  return PyBytes_FromStringAndSize(at + after, length);
}

PyMethodDef methods[] = {
    {"body_after", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(body_after)), METH_FASTCALL,
     "The body of a request whose head is known but for the length, that length where it is to come, or None."},
    {"split", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(split)), METH_FASTCALL,
     "A body without one field's value, and that value; or None."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_requests", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__requests() { return PyModule_Create(&module); }
