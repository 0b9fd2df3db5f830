// An image that is pasted, or dropped beside the place for it, goes where a chosen file goes; so do the files of
// a dropped folder, which Gradio would request as if it were a file. An unreadable file goes as an empty one, to be rejected.
() => {
  const take = (event, files) => {
    const input = document.querySelector("#images input[type=file]");
    if (!input || !files || !files.length) return;
    event.preventDefault();
    const transfer = new DataTransfer();
    for (const file of files) transfer.items.add(file);
    input.files = transfer.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const read = call => new Promise((resolve, reject) => call(resolve, reject));
  const below = async entry => {
    const name = entry.fullPath.slice(1);
    if (entry.isFile) return read((done, failed) => entry.file(done, failed)).then(
      file => [new File([file], name, { type: file.type })], () => [new File([], name)]);
    const reader = entry.createReader(), found = [];
    try {
      for (let some; (some = await read((done, failed) => reader.readEntries(done, failed))).length;) found.push(...some);
    } catch { return [new File([], name)]; }
    return (await Promise.all(found.filter(each => !each.name.startsWith(".")).map(below))).flat();
  };
  document.addEventListener("paste", event => take(event, event.clipboardData.files));
  document.addEventListener("dragover", event => event.preventDefault());
  document.addEventListener("drop", async event => {
    const entries = [...event.dataTransfer.items].map(item => item.webkitGetAsEntry()).filter(entry => entry);
    if (entries.some(entry => entry.isDirectory)) {
      event.preventDefault();
      event.stopPropagation();
      const files = (await Promise.all(entries.map(below))).flat();
      if (files.length) take(event, files); else alert("There are no files in this folder.");
    } else if (!event.target.closest("#images")) {
      event.preventDefault();
      take(event, event.dataTransfer.files);
    }
  }, true);
}
