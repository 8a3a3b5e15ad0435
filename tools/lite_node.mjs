// Runs one notebook in Pyodide under Node, with the kernel that the browser has:
//
//     node tools/lite_node.mjs site/lite/static/pyodide notebook.ipynb
//
// For each code cell one line of JSON: what it printed, what it showed as text, the heads of its pictures, how it
// failed, how long it took.
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

process.on("uncaughtException", (error) => { console.error(String(error.message)); process.exit(1); });
const [folder, notebook] = process.argv.slice(2).map((name) => resolve(name));
const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");
const plain = (value) => (value?.toJs ? value.toJs({ dict_converter: Object.fromEntries }) : value);

// What a page fetches while Python waits; here it lies in a folder.
globalThis.XMLHttpRequest = class {
    open(_, address) { this.address = address; }
    send() {
        try {
            this.response = new Uint8Array(readFileSync(this.address)).buffer;
            this.status = 200;
        } catch { this.status = 404; }
    }
};

const { loadPyodide } = await import(pathToFileURL(`${folder}/pyodide.mjs`));
const began = performance.now();
const pyodide = await loadPyodide({ indexURL: `${folder}/`, stdout: () => {}, stderr: console.error });
const silent = { messageCallback: () => {}, errorCallback: (message) => { throw new Error(message); } };
await pyodide.loadPackage(["pyodide_kernel", "piplite"], silent);
const names = pyodide.runPython("import pyodide_kernel; pyodide_kernel");
const kernel = names.kernel_instance, shell = kernel.interpreter;
const quiet = console.log;
console.log = () => {}; // what Pyodide says of the packages that it loads

let cell;
for (const name of ["stdout", "stderr"])
    names[`${name}_stream`].publish_stream_callback = (_, text) => { cell[name] += text; };
// Of a picture the head, which has its size: as text, or a page cannot show it.
const shown = (data) => {
    const { "text/plain": text = "", "image/png": picture } = plain(data);
    cell.shown.push(text);
    if (picture !== undefined) cell.pictures.push(String(picture).slice(0, 32));
};
shell.display_pub.display_data_callback = (data) => shown(data);
shell.display_pub.update_display_data_callback = (data) => shown(data);
shell.display_pub.clear_output_callback = () => {};
shell.displayhook.publish_execution_result = (_, data) => shown(data);
shell.send_comm = () => {};
say({ started: Math.round(performance.now() - began) });

const cells = JSON.parse(readFileSync(notebook)).cells.filter(({ cell_type }) => cell_type === "code");
for (const [index, { source }] of cells.entries()) {
    cell = { index, stdout: "", stderr: "", shown: [], pictures: [], error: "" };
    const start = performance.now();
    kernel._parent_header = pyodide.toPy({ header: {} });
    const { status, ename, evalue } = plain(await kernel.run([source].flat().join("")));
    if (status === "error") cell.error = `${ename}: ${evalue}`;
    say({ ...cell, seconds: (performance.now() - start) / 1000 });
}
process.exit(0);
