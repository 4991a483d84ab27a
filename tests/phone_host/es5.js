/*
 * Prints what is newer than ECMAScript 5 in a script: rhino es5.js SCRIPT
 */
var path = String(arguments[0]);
var ast = Packages.org.mozilla.javascript.ast;
var Token = Packages.org.mozilla.javascript.Token;
var environs = new Packages.org.mozilla.javascript.CompilerEnvirons();
environs.setLanguageVersion(Packages.org.mozilla.javascript.Context.VERSION_ES6);
var parser = new Packages.org.mozilla.javascript.Parser(environs);
var root = parser.parse(String(readFile(path, "UTF-8")), path, 1);
var newer = {};
["LET", "LETEXPR", "CONST", "TEMPLATE_LITERAL", "TAGGED_TEMPLATE_LITERAL", "YIELD", "YIELD_STAR",
    "SUPER", "ARRAYCOMP", "GENEXPR", "EXP", "BIGINT", "XML"].forEach(function (name) {
    try { newer[Token[name]] = name; } catch (e) { /* this Rhino does not know it */ }
});
root.visit(new ast.NodeVisitor({ visit: function (node) {
    var what = newer[node.getType()];
    if (node instanceof ast.FunctionNode) {
        if (node.getFunctionType() === ast.FunctionNode.ARROW_FUNCTION) { what = "arrow function"; }
        if (node.isES6Generator() || node.isGenerator()) { what = "generator"; }
        if (node.isMethod() && !node.isGetterMethod() && !node.isSetterMethod()) { what = "method"; }
    }
    if (node instanceof ast.ForInLoop && (node.isForOf() || node.isForEach())) { what = "for of"; }
    if ((node instanceof ast.ArrayLiteral || node instanceof ast.ObjectLiteral)
            && node.isDestructuring()) { what = "destructuring"; }
    if (node instanceof ast.VariableInitializer && node.isDestructuring()) { what = "destructuring"; }
    if (what) { print(path + ":" + node.getLineno() + ": " + what); }
    return true;
} }));
