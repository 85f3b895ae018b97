// The server-sent event of tokens that are text and nothing else, as src/twinline/gateway/transcript.py and the shapes
// write it in Python: the tokens' texts, joined, as a JSON string between two parts that are the same in every event.
// What is not surely so gives None, and Python writes it: a token whose text is not known yet or not whole, no text at
// all, and in reasoning what may belong to a tag.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstring>
#include <string>

namespace {

void quote(const char* text, Py_ssize_t size, std::string& into) {
  static const char* const kHex = "0123456789abcdef";
  for (Py_ssize_t i = 0; i < size; ++i) {
    unsigned char c = text[i];
    if (c >= ' ' && c != '"' && c != '\\') {
      into += static_cast<char>(c);
      continue;
    }
    into += '\\';
    switch (c) {
      case '"': into += '"'; break;
      case '\\': into += '\\'; break;
      case '\b': into += 'b'; break;
      case '\f': into += 'f'; break;
      case '\n': into += 'n'; break;
      case '\r': into += 'r'; break;
      case '\t': into += 't'; break;
      default:
        into += "u00";
        into += kHex[c >> 4];
        into += kHex[c & 15];
    }
  }
}

// event(tokens, texts, skipped, before, after, tagged) -> bytes or None
PyObject* event(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  if (count != 6 || !PyList_CheckExact(arguments[0]) || !PyDict_CheckExact(arguments[1]) ||
      !PyAnySet_Check(arguments[2]) || !PyBytes_CheckExact(arguments[3]) || !PyBytes_CheckExact(arguments[4])) {
    PyErr_SetString(PyExc_TypeError, "event takes tokens, their texts, those that are skipped, what is around, and a flag");
    return nullptr;
  }
  bool tagged = arguments[5] == Py_True;
  try {
    std::string data(PyBytes_AS_STRING(arguments[3]), PyBytes_GET_SIZE(arguments[3]));
    data += '"';
    size_t begun = data.size();
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(arguments[0]); ++i) {
      PyObject* token = PyList_GET_ITEM(arguments[0], i);
      int skipped = PySet_Contains(arguments[2], token);
      if (skipped < 0) return nullptr;
      if (skipped) continue;
      PyObject* text = PyDict_GetItemWithError(arguments[1], token);
      if (text == nullptr && PyErr_Occurred()) return nullptr;
      if (text == nullptr || !PyUnicode_CheckExact(text)) Py_RETURN_NONE;
      Py_ssize_t size;
      const char* said = PyUnicode_AsUTF8AndSize(text, &size);
      if (said == nullptr) return nullptr;
      if (tagged && (std::memchr(said, '<', size) != nullptr || std::memchr(said, '\n', size) != nullptr)) Py_RETURN_NONE;
      quote(said, size, data);
    }
    if (data.size() == begun) Py_RETURN_NONE;
    data += '"';
    data.append(PyBytes_AS_STRING(arguments[4]), PyBytes_GET_SIZE(arguments[4]));
    return PyBytes_FromStringAndSize(data.data(), data.size());
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

PyMethodDef methods[] = {
    {"event", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(event)), METH_FASTCALL,
     "The event of tokens that are text alone, or None."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_text_event", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__text_event() { return PyModule_Create(&module); }
