// Reads what a line answers to a streamed completion: HTTP/1.1 chunks that hold whole server-sent events of plain
// tokens, to one tuple. src/twinline/lines/events.py says what is plain; there is also the Python that reads the same
// and everything else. The rule here is: what is not surely read as Python reads it gives None, and Python reads it.
//
// No state: a call gets the bytes of one network read. So nothing has to be handed over when it declines.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int kDeepest = 32;  // levels of JSON that nobody reads

struct Text {
  const char* at = nullptr;
  size_t size = 0;
  bool is(const char* word) const { return size == std::strlen(word) && std::memcmp(at, word, size) == 0; }
};

struct Number {
  bool there = false;
  int64_t value = 0;
};

struct Said {
  std::vector<int64_t> tokens;
  std::vector<int64_t> prompt;
  bool has_prompt = false;
  Text finish;         // without a reason: at == nullptr
  Text stop_text;      // the last stop reason that was one: text, or
  Number stop_number;  // a number
  bool has_usage = false;
  Number prompt_tokens, completion_tokens, cached_tokens;
  bool any = false;    // an event that was not [DONE]
  bool done = false;   // [DONE] was there, and last
  bool ended = false;  // the body's last chunk was there, and last
};

// One pass over the bytes; each method returns false where the input is not plain.
class Reader {
 public:
  Reader(const char* data, size_t size) : at_(data), end_(data + size) {}

  // The head of an answer with a chunked body on a connection that may be kept.
  bool head() {
    if (!literal("HTTP/1.1 200 ")) return false;
    while (at_ < end_ && *at_ >= ' ' && *at_ < 0x7f) ++at_;
    if (!literal("\r\n")) return false;
    bool chunked = false;
    for (int count = 0; count < 100; ++count) {
      if (literal("\r\n")) return chunked;
      Text name{at_, 0};
      while (at_ < end_ && token(*at_)) ++at_;
      name.size = at_ - name.at;
      if (name.size == 0 || !literal(":")) return false;
      while (at_ < end_ && *at_ == ' ') ++at_;
      Text value{at_, 0};
      while (at_ < end_ && *at_ >= ' ' && *at_ < 0x7f) ++at_;
      value.size = at_ - value.at;
      if (!literal("\r\n")) return false;
      if (same(name, "transfer-encoding")) {
        if (chunked || !value.is("chunked")) return false;
        chunked = true;
      } else if (same(name, "content-length") || same(name, "upgrade") || same(name, "trailer")) {
        return false;
      } else if (same(name, "connection") && !same(value, "keep-alive")) {
        return false;
      }
    }
    return false;
  }

  // Whole chunks to the end of the bytes, each of whole events.
  bool chunks(Said& said) {
    if (at_ == end_) return false;
    while (at_ < end_) {
      size_t size = 0;
      int digits = 0;
      for (; at_ < end_ && digits < 6; ++at_, ++digits) {
        char c = *at_;
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0) break;
        size = size * 16 + digit;
      }
      if (digits == 0 || !literal("\r\n")) return false;
      if (size == 0) {
        said.ended = true;
        return literal("\r\n") && at_ == end_;
      }
      if (static_cast<size_t>(end_ - at_) < size + 2) return false;
      const char* whole = end_;
      end_ = at_ + size;
      while (at_ < end_)
        if (said.done || !event(said)) return false;
      end_ = whole;
      if (!literal("\r\n")) return false;
    }
    return true;
  }

 private:
  static bool token(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_';
  }
  static bool same(const Text& text, const char* lower) {
    if (text.size != std::strlen(lower)) return false;
    for (size_t i = 0; i < text.size; ++i) {
      char c = text.at[i];
      if (c >= 'A' && c <= 'Z') c += 'a' - 'A';
      if (c != lower[i]) return false;
    }
    return true;
  }
  bool literal(const char* word) {
    size_t size = std::strlen(word);
    if (static_cast<size_t>(end_ - at_) < size || std::memcmp(at_, word, size) != 0) return false;
    at_ += size;
    return true;
  }
  bool is(char c) {  // the next sign that is no space
    while (at_ < end_ && *at_ == ' ') ++at_;
    return at_ < end_ && *at_ == c;
  }
  bool takes(char c) {
    if (!is(c)) return false;
    ++at_;
    return true;
  }
  bool null() { return is('n') && literal("null"); }

  bool event(Said& said) {
    if (!literal("data: ")) return false;
    if (literal("[DONE]")) {
      said.done = true;
    } else if (!chunk(said)) {
      return false;
    }
    return literal("\n\n");
  }

  // A JSON object; `field` reads the value of each key.
  template <typename Field>
  bool object(Field field) {
    if (!takes('{')) return false;
    if (takes('}')) return true;
    do {
      Text key;
      if (!is('"') || !text(key) || !takes(':') || !field(key)) return false;
    } while (takes(','));
    return takes('}');
  }

  bool chunk(Said& said) {
    said.any = true;
    unsigned seen = 0;
    auto first = [&](unsigned bit) { bool fresh = !(seen & bit); seen |= bit; return fresh; };
    return object([&](const Text& key) {
      if (key.is("choices")) return first(1) && choices(said);
      if (key.is("usage")) return first(2) && (null() || usage(said));
      if (key.is("error")) return first(4) && null();
      return skip(0);
    });
  }

  bool choices(Said& said) {
    if (!takes('[')) return false;
    if (takes(']')) return true;
    unsigned seen = 0;
    auto first = [&](unsigned bit) { bool fresh = !(seen & bit); seen |= bit; return fresh; };
    bool read = object([&](const Text& key) {
      if (key.is("token_ids")) return first(1) && (null() || ids(said.tokens));
      if (key.is("prompt_token_ids")) {
        if (!first(2)) return false;
        if (null()) return true;
        if (said.has_prompt) return false;
        said.has_prompt = true;
        return ids(said.prompt);
      }
      if (key.is("finish_reason")) return first(4) && (null() || plain_text(said.finish));
      if (key.is("stop_reason")) {
        if (!first(8)) return false;
        if (null()) return true;
        said.stop_text = Text{};
        said.stop_number = Number{};
        return is('"') ? plain_text(said.stop_text) : integer(said.stop_number);
      }
      if (key.is("logprobs")) return first(16) && null();
      if (key.is("prompt_logprobs")) return first(32) && null();
      return skip(0);
    });
    return read && takes(']');
  }

  bool usage(Said& said) {
    unsigned seen = 0;
    auto first = [&](unsigned bit) { bool fresh = !(seen & bit); seen |= bit; return fresh; };
    said.has_usage = true;
    said.prompt_tokens = said.completion_tokens = said.cached_tokens = Number{};
    return object([&](const Text& key) {
      if (key.is("prompt_tokens")) return first(1) && integer(said.prompt_tokens);
      if (key.is("completion_tokens")) return first(2) && (null() || integer(said.completion_tokens));
      if (key.is("prompt_tokens_details")) {
        if (!first(4)) return false;
        if (null()) return true;
        bool once = false;
        return object([&](const Text& name) {
          if (!name.is("cached_tokens")) return skip(0);
          if (once) return false;
          once = true;
          return null() || integer(said.cached_tokens);
        });
      }
      return skip(0);
    });
  }

  bool ids(std::vector<int64_t>& into) {
    if (!takes('[')) return false;
    if (takes(']')) return true;
    do {
      Number number;
      if (!integer(number)) return false;
      into.push_back(number.value);
    } while (takes(','));
    return takes(']');
  }

  bool integer(Number& number) {
    is(' ');
    bool negative = at_ < end_ && *at_ == '-';
    if (negative) ++at_;
    const char* began = at_;
    int64_t value = 0;
    while (at_ < end_ && *at_ >= '0' && *at_ <= '9' && at_ - began < 18) value = value * 10 + (*at_++ - '0');
    if (at_ == began || (*began == '0' && at_ - began > 1) || (negative && value == 0)) return false;
    if (at_ < end_ && ((*at_ >= '0' && *at_ <= '9') || *at_ == '.' || *at_ == 'e' || *at_ == 'E')) return false;
    number.there = true;
    number.value = negative ? -value : value;
    return true;
  }

  bool text(Text& into) {  // of a key: without escapes
    ++at_;
    into.at = at_;
    while (at_ < end_ && *at_ != '"') {
      unsigned char c = *at_;
      if (c < ' ' || c >= 0x7f || c == '\\') return false;
      ++at_;
    }
    into.size = at_ - into.at;
    return at_++ < end_;
  }
  bool plain_text(Text& into) { return is('"') && text(into); }

  bool skip(int depth) {  // a value that nobody reads
    if (depth > kDeepest) return false;
    if (is('"')) {
      for (++at_; at_ < end_ && *at_ != '"'; ++at_) {
        unsigned char c = *at_;
        if (c < ' ') return false;
        if (c == '\\' && (++at_ == end_ || !std::strchr("\"\\/bfnrt", *at_) || *at_ == 0)) return false;
      }
      return at_++ < end_;
    }
    if (at_ >= end_) return false;
    switch (*at_) {
      case 'n': return literal("null");
      case 't': return literal("true");
      case 'f': return literal("false");
      case '{': return object([&](const Text&) { return skip(depth + 1); });
      case '[':
        ++at_;
        if (takes(']')) return true;
        do {
          if (!skip(depth + 1)) return false;
        } while (takes(','));
        return takes(']');
      default: {
        Number number;
        return integer(number);
      }
    }
  }

  const char* at_;
  const char* end_;
};

PyObject* none() { Py_RETURN_NONE; }

PyObject* list_of(const std::vector<int64_t>& numbers) {
  PyObject* list = PyList_New(numbers.size());
  if (list == nullptr) return nullptr;
  for (size_t i = 0; i < numbers.size(); ++i) {
    PyObject* number = PyLong_FromLongLong(numbers[i]);
    if (number == nullptr) {
      Py_DECREF(list);
      return nullptr;
    }
    PyList_SET_ITEM(list, i, number);
  }
  return list;
}

PyObject* str_of(const Text& text) { return text.at == nullptr ? none() : PyUnicode_FromStringAndSize(text.at, text.size); }
PyObject* int_of(const Number& number) { return number.there ? PyLong_FromLongLong(number.value) : none(); }

PyObject* usage_of(const Said& said) {
  if (!said.has_usage) return none();
  return Py_BuildValue("(LLN)", static_cast<long long>(said.prompt_tokens.value),
                       static_cast<long long>(said.completion_tokens.value), int_of(said.cached_tokens));
}

PyObject* tuple_of(const Said& said) {
  return Py_BuildValue("(NNNNNOO)", said.any ? list_of(said.tokens) : none(), said.has_prompt ? list_of(said.prompt) : none(),
                       str_of(said.finish), said.stop_number.there ? int_of(said.stop_number) : str_of(said.stop_text),
                       usage_of(said), said.done ? Py_True : Py_False, said.ended ? Py_True : Py_False);
}

PyObject* read(PyObject* argument, bool with_head) {
  char* data;
  Py_ssize_t size;
  if (PyBytes_AsStringAndSize(argument, &data, &size) < 0) return nullptr;
  try {
    Said said;
    Reader reader(data, size);
    if (with_head && !reader.head()) Py_RETURN_NONE;
    if (!reader.chunks(said) || (with_head && !said.ended)) Py_RETURN_NONE;
    return tuple_of(said);
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
}

PyObject* read_answer(PyObject*, PyObject* data) { return read(data, true); }
PyObject* read_chunks(PyObject*, PyObject* data) { return read(data, false); }

PyMethodDef methods[] = {
    {"read_answer", read_answer, METH_O, "A whole answer, head and body, or None where it is not plain."},
    {"read_chunks", read_chunks, METH_O, "Whole chunks of a body, or None where they are not plain."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT, "_events", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__events() { return PyModule_Create(&module); }
