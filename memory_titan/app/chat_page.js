// What the chat's page does by itself. `emit` passes something on to chat_page.py.
const chat = {
  at: (id) => document.getElementById(id),
  open: (id) => chat.at(id).showModal(),
  close: (id) => chat.at(id).close(),
  focus: (id) => chat.at(id).focus(),
  press: (id) => chat.at(id).click(),

  // The text stays in the box until the server has taken it. What is far too long for its channel goes as a length.
  send(emit) {
    const box = chat.at("box");
    const length = [...box.value].length;
    if (!box.value.trim()) return;
    box.sent = box.value;
    chat.tell("");
    emit(length > 2 * Number(box.dataset.limit) ? length : box.value);
  },
  taken() {
    const box = chat.at("box");
    if (box.value === box.sent) chat.fill("");
    box.focus();
  },
  fill(text) {
    const box = chat.at("box");
    box.value = text;
    chat.fit();
    box.focus();
  },
  fit() {
    const box = chat.at("box");
    box.style.height = "auto";
    box.style.height = `${box.scrollHeight + 2}px`;
  },
  key(event, emit) {
    if (event.key === "Escape") chat.press("stop");
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (chat.at("stop").classList.contains("hidden")) chat.send(emit);
  },
  tell(sentence) {
    chat.at("notice").textContent = sentence;
  },

  slot(event, emit) {
    const button = event.target.closest("[data-slot]");
    if (button) emit(Number(button.dataset.slot));
  },
  filter() {
    const wanted = chat.at("filter").value.trim().toLowerCase();
    for (const row of chat.at("held").querySelectorAll("li"))
      row.hidden = !row.querySelector("q").textContent.toLowerCase().includes(wanted);
  },

  async upload(input) {
    const file = input.files[0];
    input.value = "";
    if (!file) return;
    chat.tell("");
    if (file.size > Number(input.dataset.limit)) {
      chat.tell(`${file.name} has ${file.size.toLocaleString("en")} bytes; at most ` +
        `${Number(input.dataset.limit).toLocaleString("en")} are taken`);
      return;
    }
    try {
      const answer = await fetch(`${input.dataset.to}?name=${encodeURIComponent(file.name)}`,
        { method: "POST", body: file });
      if (!answer.ok) chat.tell(await answer.text());
    } catch {
      chat.tell(`${file.name} could not be sent`);
    }
  },
};
globalThis.chat = chat;

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-fill], [data-press]");
  if (button?.dataset.fill) chat.fill(button.dataset.fill);
  if (button?.dataset.press) chat.press(button.dataset.press);
});
document.addEventListener("input", (event) => {
  if (event.target.id === "box") chat.fit();
  if (event.target.id === "filter") chat.filter();
});
document.addEventListener("change", (event) => {
  if (event.target.type === "file") chat.upload(event.target);
});

// The newest stays in sight, unless somebody has scrolled up to read; what is searched for stays searched for.
let atEnd = true;
document.addEventListener("scroll", (event) => {
  const talk = event.target;
  if (talk.id === "talk") atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
}, true);
new MutationObserver(() => {
  const talk = chat.at("talk");
  if (talk && atEnd) talk.scrollTop = talk.scrollHeight;
  if (chat.at("held")) chat.filter();
}).observe(document, { childList: true, subtree: true });
