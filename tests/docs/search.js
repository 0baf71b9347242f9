/*
 * Searches a built documentation with its own script, as a browser would.
 *
 * node search.js <folder of the HTML> <phrase>...
 *
 * Prints a JSON object: for each phrase, the page of each hit, the best one first.
 */
"use strict";

const fs = require("fs");
const path = require("path");
const vm = require("vm");

const [folder, ...phrases] = process.argv.slice(2);
const nothing = { childNodes: [], firstChild: null };
const browser = {
  document: { getElementById: () => nothing },
  localStorage: { setItem: () => {} },
  SPHINX_HIGHLIGHT_ENABLED: false,
  _: (text) => text,
  _ready: () => {},
};
browser.window = browser;
const context = vm.createContext(browser);
const read = (name) => fs.readFileSync(path.join(folder, name), "utf8");
const scripts = [
  "_static/base-stemmer.js",
  "_static/english-stemmer.js",
  "_static/language_data.js",
  "_static/searchtools.js",
  "searchindex.js",
];
const code = scripts.filter((name) => fs.existsSync(path.join(folder, name))).map(read);
const ask = `
  (phrase) => Search._performSearch(...Search._parseQuery(phrase)).map((hit) => hit[0])
`;
const search = vm.runInContext(`${code.join("\n")};${ask}`, context);
const pages = phrases.map((each) => [each, search(each).reverse()]);
console.log(JSON.stringify(Object.fromEntries(pages)));
